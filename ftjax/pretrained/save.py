"""Parameters -> a Hugging Face model directory that `transformers` loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from ftjax.models import Params, merge_lora
from ftjax.pretrained.load import Pretrained
from ftjax.pretrained.names import TABLES
from ftjax.pretrained.tensors import write_tensors

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "added_tokens.json")


def save_pretrained(pretrained: Pretrained, params: Params, directory: str | Path, *, trained: bool = True) -> None:
    """Write config.json, model.safetensors and the tokenizer's files.

    trained: the parameters come out of fine-tuning: float32 where a value changed, the files' own dtype where it did
        not, low-rank matrices merged into their kernels, and without the heads that the task does not use. False: an
        untouched model, every tensor of the original files again under its own name, bit for bit.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = TABLES[pretrained.raw_config["model_type"]]
    has_head = bool(pretrained.labels)
    prefixed = (has_head or "masked_lm.bias" in params) if trained else not pretrained.base_only
    params = merge_lora(pretrained.model, params)
    tensors: dict[str, np.ndarray] = {}
    for ours, value in params.items():
        if (ours in pretrained.new and not trained) or (ours.startswith("masked_lm.") and trained and has_head):
            continue
        theirs, transposed = table.theirs(ours)
        array = np.asarray(value)
        if ours in pretrained.dtypes:
            narrow = array.astype(pretrained.dtypes[ours])
            array = narrow if np.array_equal(narrow.astype(array.dtype), array, equal_nan=True) else array
        tensors[theirs if prefixed else theirs.removeprefix(table.prefix)] = array.T if transposed else array
    if not trained:
        tensors |= pretrained.carried

    config = dict(pretrained.raw_config)
    if trained:
        config |= {"dtype": "float32"}
        config.pop("torch_dtype", None)
        if has_head:
            config |= {
                "architectures": [table.classes[0]],
                "problem_type": "single_label_classification",
                "id2label": {str(i): label for i, label in enumerate(pretrained.labels)},
                "label2id": {label: i for i, label in enumerate(pretrained.labels)},
            }
            if pretrained.classifier == "first-token":
                config["ftjax_classifier"] = "first-token"  # no class of transformers has this head
            else:
                config.pop("ftjax_classifier", None)
        elif "masked_lm.bias" in params:
            config["architectures"] = [table.classes[1]]
    write_tensors(tensors, directory)
    for name in TOKENIZER_FILES:
        if (pretrained.directory / name).is_file():
            shutil.copyfile(pretrained.directory / name, directory / name)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, directory / "config.json")  # last: a directory with a config.json is complete
