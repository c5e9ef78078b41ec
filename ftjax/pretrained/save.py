"""Parameters -> a Hugging Face model directory that `transformers` loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.models import Params, merge_lora
from ftjax.models.body import OF_TOKENS
from ftjax.pretrained import gguf
from ftjax.pretrained.adapter import check_adapter, write_adapter
from ftjax.pretrained.load import Pretrained, open_weights, read_config
from ftjax.pretrained.tensors import read_whole, write_tensors

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "added_tokens.json")
TOKENIZER_FILES += ("vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
OTHER_FILES = ("chat_template.jinja", "generation_config.json")


def save_pretrained(pretrained: Pretrained, params: Params, directory: str | Path, *, trained: bool = True) -> None:
    """Write config.json, model.safetensors and the tokenizer's files.

    trained: the parameters come out of fine-tuning: float32 where a value changed, the files' own dtype where it did
        not, low-rank matrices merged into their kernels, and without the heads that the task does not use. False: an
        untouched model, every tensor of the original files again under its own name, bit for bit.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = pretrained.model.config.names.with_classifier(pretrained.classifier)
    has_head = bool(pretrained.labels)
    causal_lm = bool(dict(pretrained.model.heads)["causal_lm"])
    prefixed = has_head or causal_lm or "masked_lm.bias" in params
    params = merge_lora(pretrained.model, params)
    tensors: dict[str, np.ndarray] = {}
    for ours, value in params.items():
        unread = has_head and pretrained.model.cloze is None and ours.startswith(("masked_lm.", "lm_head."))
        if unread if trained else ours in pretrained.new:
            continue
        theirs, transposed = table.theirs(ours)
        name = (theirs if prefixed else theirs.removeprefix(table.prefix)) if trained else pretrained.spelled[ours]
        array = np.asarray(value)
        if ours in pretrained.dtypes:
            narrow = array.astype(pretrained.dtypes[ours])
            array = narrow if np.array_equal(narrow.astype(array.dtype), array, equal_nan=True) else array
        tensors[name] = array.T if transposed else array
    if not trained and pretrained.carried:
        weights = open_weights(pretrained.directory, table)
        tensors |= {name: read_whole(weights, name) for name in pretrained.carried}
    tensors = table.join(tensors)

    config = dict(pretrained.raw_config)
    if trained:
        config = trained_config(pretrained) | {"dtype": "float32"}
        config.pop("torch_dtype", None)
    write_tensors(tensors, directory)
    save_tokenizer(pretrained, directory)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, directory / "config.json")  # last: a directory with a config.json is complete


def trained_config(pretrained: Pretrained) -> dict[str, Any]:
    """What config.json says of a model after training: the class that loads it, and the classes it tells apart."""
    table = pretrained.model.config.names.with_classifier(pretrained.classifier)
    config, heads = dict(pretrained.raw_config), dict(pretrained.model.heads)
    if pretrained.labels:
        config |= {
            "architectures": [table.classes[0 if pretrained.model.cloze is None else 1]],
            "problem_type": pretrained.problem_type,
            "id2label": {str(i): label for i, label in enumerate(pretrained.labels)},
            "label2id": {label: i for i, label in enumerate(pretrained.labels)},
        }
        if pretrained.classifier in (pretrained.model.config.own_classifier, *OF_TOKENS):
            config.pop("ftjax_classifier", None)
        else:
            config["ftjax_classifier"] = pretrained.classifier  # no class of transformers has this head
        if pretrained.model.cloze is None:
            config.pop("ftjax_cloze", None)
    elif heads["masked_lm"] or heads["causal_lm"]:
        config["architectures"] = [table.classes[1]]
    return config


def save_tokenizer(pretrained: Pretrained, directory: Path) -> None:
    """Copy the tokenizer's files, or write those of a GGUF file's."""
    if gguf.is_gguf(pretrained.directory):
        gguf.tokenizer(pretrained.directory).save_pretrained(directory)
    for name in TOKENIZER_FILES + OTHER_FILES:
        if (pretrained.directory / name).is_file():
            shutil.copyfile(pretrained.directory / name, directory / name)


def save_adapter(
    pretrained: Pretrained, params: Params, trained: Collection[str], directory: str | Path, *, base: str | Path
) -> None:
    """Write low-rank matrices, and what trained besides, as an adapter that `peft` loads, and the tokenizer's files.

    trained: names of the parameters that trained. base: the model that the run started from, a directory or a hub id.
    Raises InputError where what trained does not go into an adapter.
    """
    changed = {*trained, *pretrained.adapted}
    check_adapter(pretrained.model, changed)
    config, before = trained_config(pretrained), read_config(pretrained.directory)[1]
    changes = {"model_type": before.get("model_type")} | {n: v for n, v in config.items() if before.get(n) != v}
    directory, base = Path(directory), Path(base).expanduser().resolve() if Path(base).expanduser().exists() else base
    table = pretrained.model.config.names.with_classifier(pretrained.classifier)
    write_adapter(pretrained.model, params, changed, table, directory, base=str(base), changes=changes)
    save_tokenizer(pretrained, directory)
