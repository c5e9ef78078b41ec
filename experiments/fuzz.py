"""Damaged and malicious files, by the thousand: a reader may only succeed or say in an InputError what is wrong.

    python experiments/fuzz.py --files 100000              # all readers; what fails is kept in runs/fuzz
    python experiments/fuzz.py --reader gguf --first 17 --files 1     # one file again, with its traceback

Every file is a well-formed one with a few changes that a seed draws: bits, bytes and numbers overwritten, pieces cut out,
repeated or swapped, words of a text or values of a JSON tree replaced by awkward ones. Readers run in worker processes with
a limit on memory and on the time for each file; a worker that dies, by a signal or for time or memory, is a failure of the file
it was at.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import dataclasses
import functools
import gzip
import json
import lzma
import multiprocessing
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import InputError

SECONDS = 10  # of processor time a file
MEMORY = 10**9  # bytes a file, beyond what a worker has when it starts
WORDS = (
    *("", "0", "-1", "1", "2147483648", "18446744073709551615", "1e999", "NaN", "Infinity", "null", "true", "[]", "{}", '""'),
    *('"', "../../etc/passwd", "/etc/passwd", "model.safetensors", "\0", "\ufeff", "\u2028", "\ud800", "😀", "a" * 5000),
    *("[" * 3000, ",", "\t", "\r", "\n", "#", "=", ":", "(a+)+$", "<script>alert(1)</script>", "{{ 1 / 0 }}", "%s%n", "F32"),
    *("I64", "llama"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "a", "../x", "/etc/passwd", "0", "gelu", "\ud800", "a" * 1000, [], [0], [[]], {}, {"a": 1}, ["a", 1, None]),
    [2**40, 2**40],
)
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A few changes anywhere, of a JSON tree where the content is one."""
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            return of_json(content, rng)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.4:  # most of what steers a reader stands at the beginning
            at = min(at, rng.randrange(200))
        size = rng.choice((1, 1, 2, 4, 8, 30, 300, len(changed) // 3))
        match rng.randrange(9):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 1] = bytes([rng.choice((0, 1, 10, 13, 32, 34, 44, 92, 127, 128, 255))])
            case 2:
                number = rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))
                width = rng.choice((1, 2, 4, 8))
                changed[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "little", "big")))
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + size]
            case 5:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 1, 2, 20))
            case 6:
                changed[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            case 7:
                found = list(re.finditer(rb"[\w.+-]+", bytes(changed[at : at + 2000])))
                if found:
                    start, end = rng.choice(found).span()
                    changed[at + start : at + end] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            case 8:
                other = rng.randrange(len(changed) + 1)
                changed[at : at + size] = changed[other : other + size]
    return bytes(changed)


def of_json(content: bytes, rng: random.Random) -> bytes:
    """The content with values of its tree replaced, taken out, doubled or renamed. ValueError where it is no JSON."""
    tree = {"": json.loads(content)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in list(node if isinstance(node, dict) else range(len(node)))[:300]:
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    walk(node[key])

        walk(tree)
        node, key = rng.choice(places)
        match rng.randrange(5):
            case 0 if key != "":
                del node[key]
            case 1 if isinstance(node, dict) and key != "":
                node[rng.choice((rng.choice(WORDS), *(str(k) for _, k in places[:50])))] = node.pop(key)
            case 2:
                node[key] = [node[key]] * rng.choice((1, 2, 100))
            case _:
                value = node[key]
                scaled = value * rng.choice((-1, 2, 10**6, 10**12)) if isinstance(value, int) and rng.random() < 0.5 else None
                node[key] = rng.choice(VALUES) if scaled is None else scaled
    return json.dumps(tree[""]).encode()


@dataclasses.dataclass(frozen=True)
class Reader:
    """One way files come in.

    files: well-formed ones, name -> content. changed: which of them are mutated, one at a time. read: what is tried on the
    directory that holds them. mutate: how. share: of all files, relative to others.
    """

    files: dict[str, bytes]
    changed: tuple[str, ...]
    read: Callable[[Path], Any]
    mutate: Callable[[bytes, random.Random], bytes] = mutate
    share: float = 1.0


def header_mutated(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with its JSON header changed and the length before it right, or changed as any other file."""
    if rng.random() < 0.5 or content.startswith(b"{"):
        return mutate(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    header = mutate(content[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def repacked(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """Changes of a compressed file, inside or outside."""
    return lambda content, rng: pack(mutate(unpack(content), rng)) if rng.random() < 0.5 else mutate(content, rng)


CONFIG = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": CONFIG | {"hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12, "id2label": {"0": "a", "1": "b"}},
    "llama": CONFIG | {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rms_norm_eps": 1e-5},
    "gemma3_text": CONFIG | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "rope_local_base_freq": 1e4},
    "qwen3": CONFIG | {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": False},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "t5": {
        "vocab_size": 40,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 4,
        "d_ff": 24,
        "feed_forward_proj": "relu",
    },
}
NOTES = {  # what tells the task of a trained model
    "architectures": ["BertForMaskedLM"],
    "problem_type": None,
    "ftjax_max_target_length": 32,
    "ftjax_masking": {"mask_probability": 0.15, "mask_whole_words": False},
}
TEXTS = ["I love it", 'a "quoted", text', "dull", "", "übergroß 😀"]
TABLE = [{"text": text, "label": number % 2, "pair": None} for number, text in enumerate(TEXTS)]
RULES = """# comment
head trained
encoder\\.layers\\.[01]\\..* trained learning-rate=0.5 weight-decay=0
last:1 trained
.* frozen
"""


def weights() -> dict[str, np.ndarray]:
    """Those of the BERT above, random, under Hugging Face's names."""
    from ftjax.models import CONFIGS as KINDS
    from ftjax.models import build

    config = KINDS["bert"].from_dict(CONFIGS["bert"], "")
    rng, found = np.random.default_rng(0), {}
    for name, shape in build(config, num_labels=2).shapes.items():
        theirs, transposed = config.names.theirs(name)
        value = rng.standard_normal(shape.shape).astype(np.float32)
        found[theirs] = np.ascontiguousarray(value.T if transposed else value)
    return found


def adapter_files() -> dict[str, bytes]:
    """An adapter in PEFT's format for the BERT above."""
    from safetensors.numpy import save

    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", "task_type": "SEQ_CLS"}
    config |= {"alpha_pattern": {"query": 8}, "lora_dropout": 0.1, "target_modules": ["query"], "use_dora": False}
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
    matrices = {name.format("A"): np.ones((2, 16), np.float32), name.format("B"): np.ones((16, 2), np.float32)}
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(matrices),
        "config_changes.json": json.dumps({"id2label": {"0": "a", "1": "b"}, "problem_type": None}).encode(),
    }


def tokenizer_json() -> bytes:
    """A WordPiece tokenizer, with all that such a file may hold."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        "##a",
        "##e",
        "##ll",
        "love",
        "it",
        "i",
    ]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(words[:5])
    made.enable_truncation(32)
    return made.to_str().encode()


TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 32,
    **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
}


def gguf_file() -> bytes:
    """A Llama with its tokenizer: metadata, a float tensor of every kind of name and a quantised one."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def packed(value: Any) -> bytes:
        match value:
            case bool():
                return struct.pack("<I?", 7, value)
            case int():
                return struct.pack("<II", 4, value)
            case float():
                return struct.pack("<If", 6, value)
            case str():
                return struct.pack("<I", 8) + text(value)
            case [str(), *_]:
                return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)

    numbers = {"block_count": 1, "context_length": 32, "embedding_length": 32, "feed_forward_length": 32, "vocab_size": 9}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    metadata: dict[str, Any] = {"general.architecture": "llama", **{f"llama.{name}": value for name, value in numbers.items()}}
    metadata |= {"llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 1e4, "tokenizer.ggml.model": "gpt2"}
    metadata |= {
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<|end|>", "<|user|>", "a", "b", "ab", "Ġ", "1", "2", "Ġab"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * 7],
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    shapes = {"token_embd.weight": (9, 32), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32)}
    shapes |= {"blk.0.attn_k.weight": (16, 32), "blk.0.ffn_up.weight": (32, 32)}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    head += b"".join(text(name) + packed(value) for name, value in metadata.items())
    data = b""
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        kind, raw = (8, bytes(size // 32 * 34)) if "ffn" in name else (0, bytes(4 * size))
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def written(write: Callable[[Path], Any]) -> bytes:
    """What a function writes into a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "file")
        write(path)
        return path.read_bytes()


def h5_file(path: Path) -> None:
    """A few weights as Keras keeps them, one of them in chunks."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("bert/tf_bert_for_sequence_classification/bert/encoder/layer_._0/attention/self")
        group.create_dataset("query/kernel:0", data=np.ones((16, 16), np.float32))
        group.create_dataset("query/bias:0", data=np.ones(16, np.float32), chunks=(4,))
        group.attrs["weight_names"] = [b"query/kernel:0", b"query/bias:0"]
        file.attrs["backend"] = b"tensorflow"


def npy_file(path: Path) -> None:
    """Rows of a prefix cache."""
    with path.open("wb") as file:
        np.save(file, np.ones((6, 4), np.float32))


def parquet_file(path: Path) -> None:
    """Texts and labels, with the class names that `datasets` writes."""
    import pyarrow
    from datasets import ClassLabel, Features, Value
    from pyarrow import parquet

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    table = pyarrow.table({"text": TEXTS, "label": [i % 2 for i in range(len(TEXTS))]}, schema=features.arrow_schema)
    parquet.write_table(table, path)


def read_weights(directory: Path) -> None:
    """Every tensor of a model directory."""
    from ftjax.pretrained.load import _weights_in
    from ftjax.pretrained.tensors import read_whole

    opened = _weights_in(directory)
    for name in opened.headers:
        read_whole(opened, name)


def read_gguf(directory: Path) -> None:
    """Configuration, tensors and tokenizer of a GGUF file."""
    from ftjax.data.files import Rows
    from ftjax.data.tokenize import encode
    from ftjax.pretrained import gguf
    from ftjax.pretrained.load import read_config
    from ftjax.pretrained.tensors import read_whole

    path = directory / "model.gguf"
    read_config(path)
    opened = gguf.GgufWeights(path)
    for name in opened.headers:
        read_whole(opened, name)
    encode(Rows(["ab ab 1"], None, None, "rows"), gguf.tokenizer(path), (), 16)


def read_tokenizer(directory: Path) -> None:
    """A tokenizer, and rows through it."""
    from ftjax.data.files import Rows
    from ftjax.data.tokenize import encode, load_tokenizer

    encode(Rows(TEXTS, TEXTS, None, "rows"), load_tokenizer(directory), (), 16)


def read_configuration(directory: Path) -> None:
    """config.json, the model that it means, without weights, and the task."""
    from ftjax.config import TrainConfig
    from ftjax.models import build
    from ftjax.pretrained.load import read_config, saved_classifier, saved_labels
    from ftjax.tasks import task_of_model

    config, raw, _ = read_config(directory)
    labels = saved_labels(raw)
    task_of_model(raw).saved(TrainConfig(model="m", output=directory), raw, labels)
    if config.classifiers:
        saved_classifier(config, raw)
        build(config, num_labels=len(labels) or 2)


def read_model(directory: Path) -> None:
    """A whole model directory."""
    from ftjax.pretrained import load_pretrained

    load_pretrained(directory)


def read_adapter(directory: Path) -> None:
    """A model with an adapter."""
    from ftjax.pretrained import load_pretrained

    load_pretrained(directory / "base", adapter=directory)


def read_rules(directory: Path) -> None:
    """A table of rules, applied to names."""
    from ftjax.partition import treat

    names = [f"encoder.layers.{i}.mlp.{kind}" for i in range(2) for kind in ("kernel", "bias")]
    treat([*names, "classifier.kernel"], f"rules:{directory / 'rules.txt'}", layers=2)


def read_rows(name: str) -> Callable[[Path], Any]:
    """Rows of a file."""

    def read(directory: Path) -> None:
        from ftjax.data.files import read_file

        read_file(directory / name)

    return read


def read_for(task: str, name: str) -> Callable[[Path], Any]:
    """Rows of a file as a task reads and tokenises them."""

    def read(directory: Path) -> None:
        from ftjax.config import TrainConfig
        from ftjax.tasks import task_class

        settings = TrainConfig(model="m", output=directory, task=task)
        wanted = task_class(task).of(settings)
        rows = wanted.read_file(directory / name, settings)
        if any(label is not None for label in rows.labels or ()):
            wanted = wanted.fitted([rows], ())
        wanted.encode(rows, tokenizer(), 32)

    return read


@functools.cache
def tokenizer() -> Any:
    """That of `tokenizer_json`."""
    from ftjax.data.tokenize import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "tokenizer.json").write_bytes(tokenizer_json())
        template = "{% for message in messages %}{{ message.role }}: {{ message.content }} [SEP]{% endfor %}"
        Path(directory, "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | {"chat_template": template}))
        Path(directory, "config.json").write_text(json.dumps({"model_type": "bert", **CONFIGS["bert"]}))
        return load_tokenizer(Path(directory))


def read_saved_run(directory: Path) -> None:
    """A run's directory: what resuming, exporting and the report read of it."""
    from ftjax import rundir
    from ftjax.config import TrainConfig
    from ftjax.pretrained.tensors import read_json
    from ftjax.report import html, read_run, table

    config = TrainConfig(model="m", output=directory, train_file=Path("train.csv"), resume=True)
    with contextlib.suppress(InputError):
        rundir.check(config)
    rundir.bucket_lengths(directory)
    runs = [read_run(directory)]
    table(runs)
    html(runs)
    TrainConfig.from_dict(read_json(directory / "config.json")).check()


def read_prefix(directory: Path) -> None:
    """A file of the prefix cache."""
    from ftjax.prefix import _open

    found = _open(directory / "rows.npy", (6, 4))
    if found is not None:
        found.sum()


def run_files() -> dict[str, bytes]:
    """A small run's directory."""
    from ftjax.config import TrainConfig

    config = TrainConfig(model="m", output=Path("runs/a"), train_file=Path("train.csv")).to_dict()
    more = {
        "labels": ["a", "b"],
        "bucket_lengths": [16, 32],
        "device": "1 x cpu",
        "versions": {"jax": "1"},
        "command": "ftjax train",
    }
    scores = {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7, "matthews": 0.4}
    lines = [{"kind": "train", "step": s, "epoch": s / 4, "loss": 1 / s, "gradient_norm": 1.0} for s in range(1, 9)]
    lines += [{"kind": "eval", "step": 8, "epoch": 2.0, **scores}]
    result = {
        "method": "full",
        "trained_parameters": 10,
        "frozen_parameters": 0,
        "steps": 8,
        "best_step": 8,
        "train_seconds": 2.0,
    }
    result |= {
        "train_seconds": 2.0,
        "examples_per_second": 9.0,
        "peak_memory_bytes": 10**9,
        "eval": scores,
        "test": scores,
        "seconds": {"step": 1.0},
    }
    rows = [{"text": t, "label": "a", "prediction": "b", "scores": {"a": 0.4, "b": 0.6}} for t in TEXTS]
    jsonl = {"metrics.jsonl": lines, "predictions.jsonl": rows}
    return {
        "config.json": json.dumps(config | more).encode(),
        "result.json": json.dumps(result).encode(),
        **{name: "".join(json.dumps(row) + "\n" for row in found).encode() for name, found in jsonl.items()},
    }


def of_tasks() -> Iterator[tuple[str, str, bytes]]:
    """(task, name, content) of the files that tasks have formats of their own for."""
    context = "Paris is the capital of France."
    answers = [{"text": "Paris", "answer_start": 0}]
    article = {
        "title": "a",
        "paragraphs": [{"context": context, "qas": [{"question": "Where?", "id": "1", "answers": answers}]}],
    }
    turns = [{"role": role, "content": "love it"} for role in ("system", "user", "assistant")]
    lines: dict[str, list[Any]] = {
        "token-classification": [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["it"], "tags": ["O"]}],
        "question-answering": [{"question": "Where?", "context": context, "answers": {"text": ["Paris"], "answer_start": [0]}}],
        "dialogue": [{"messages": turns}, {"messages": turns[1:]}],
        "multi-label": [{"text": "it", "label": ["a", "b"]}, {"text": "love", "label": []}],
        "regression": [{"text": "it", "label": 0.5}, {"text": "love", "label": "2"}],
        "seq2seq": [{"source": "it", "target": "love"}],
    }
    for task, rows in lines.items():
        yield task, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in 2 * rows).encode()
    yield (
        "question-answering",
        "squad.json",
        json.dumps({"version": "2", "data": [article]}).encode(),
    )
    yield "token-classification", "rows.conll", b"-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\n"
    yield "token-classification", "rows.txt", b"EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n"
    yield "causal-lm", "rows.txt", "\n".join(TEXTS).encode()


def line_mutated(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines, or one JSON, with one of its lines changed as JSON, or changed as any other file."""
    lines = content.splitlines(keepends=True)
    if rng.random() < 0.5 or len(lines) < 2:
        return mutate(content, rng)
    at = rng.randrange(len(lines))
    with contextlib.suppress(ValueError, RecursionError):
        lines[at] = of_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def readers() -> dict[str, Reader]:
    """Every way files come in, by name."""
    from safetensors.numpy import save

    tensors = weights()
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    shards = {file: save({name: tensors[name] for name in part}) for file, part in halves.items()}
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    bert = json.dumps({"model_type": "bert", **CONFIGS["bert"]}).encode()
    words = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG).encode()}
    single, indexed, run = "model.safetensors", "model.safetensors.index.json", run_files()
    found = {
        "safetensors": Reader({single: save({n: tensors[n] for n in names[:6]})}, (single,), read_weights, header_mutated, 2.0),
        "index": Reader({indexed: json.dumps(index).encode(), **shards}, (indexed,), read_weights),
        "gguf": Reader({"model.gguf": gguf_file()}, ("model.gguf",), read_gguf, share=2.0),
        "h5": Reader({"tf_model.h5": written(h5_file)}, ("tf_model.h5",), read_weights, share=2.0),
        "tokenizer": Reader({**words, "config.json": bert}, ("tokenizer.json", *words), read_tokenizer),
        "model": Reader({"config.json": bert, single: save(tensors)}, ("config.json", single), read_model, header_mutated, 0.1),
        "adapter": Reader(
            {"base/config.json": bert, "base/model.safetensors": save(tensors), **adapter_files()},
            ("adapter_config.json", "adapter_config.json", "adapter_model.safetensors", "config_changes.json"),
            read_adapter,
            header_mutated,
            0.2,
        ),
        "rules": Reader({"rules.txt": RULES.encode()}, ("rules.txt",), read_rules),
        "run": Reader(run, tuple(run), read_saved_run, line_mutated, 0.1),
        "prefix": Reader({"rows.npy": written(npy_file)}, ("rows.npy",), read_prefix),
    }
    for kind, config in CONFIGS.items():
        files = {"config.json": json.dumps({"model_type": kind, **config, **NOTES}).encode()}
        found[f"config-{kind}"] = Reader(files, ("config.json",), read_configuration, share=0.3)
    csv = b'text,label\nI love it,1\n"a ""quoted"", text",0\n"two\nlines",1\n'
    rows = {
        "rows.csv": csv,
        "rows.tsv": csv.replace(b",", b"\t"),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in TABLE).encode(),
        "rows.json": json.dumps(TABLE).encode(),
        "rows.txt": "\n".join(TEXTS).encode(),
        "rows.parquet": written(parquet_file),
    }
    for name, content in rows.items():
        found[name] = Reader({name: content}, (name,), read_rows(name), line_mutated, 0.7)
    for task, name, content in of_tasks():
        found[f"{task}-{name}"] = Reader({name: content}, (name,), read_for(task, name), line_mutated, 0.3)
    for suffix, packer in ((".gz", gzip), (".bz2", bz2), (".xz", lzma)):
        name, change = f"rows.csv{suffix}", repacked(packer.compress, packer.decompress)
        found[name] = Reader({name: packer.compress(csv)}, (name,), read_rows(name), change, 0.7)
    return found


def once(reader: Reader, seed: int, directory: Path) -> None:
    """Write the reader's files, the seed's one changed, and read them. Raises what the reader raises."""
    rng = random.Random(seed)
    chosen = rng.choice(reader.changed)
    for name, content in reader.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        if name == chosen or not (directory / name).exists():
            (directory / name).write_bytes(reader.mutate(content, rng) if name == chosen else content)
    try:
        reader.read(directory)
    finally:
        (directory / chosen).unlink()


def work(reader: Reader, seeds: range, pipe: Connection) -> None:
    """A worker: tell the seed before each file, and what went wrong with it."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for number in (1, 2):  # libraries print past Python
        os.dup2(sys.stderr.fileno(), number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as directory:
        pipe.send((-1, ""))
        try:  # the file as it should be; imports and whatever else comes once come now
            once(dataclasses.replace(reader, mutate=lambda content, rng: content), 0, Path(directory))
        except BaseException as error:
            pipe.send((-1, "a well-formed file: " + "".join(traceback.format_exception(error))[-6000:]))
        used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for seed in seeds:
            pipe.send((seed, ""))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                once(reader, seed, Path(directory))
            except InputError as error:
                if not 10 < len(str(error)) < 10_000:
                    pipe.send((seed, f"an InputError that says nothing, or too much: {error!r}"))
            except BaseException as error:  # whatever it is, it is what we are here for
                pipe.send((seed, "".join(traceback.format_exception(error))[-6000:]))
            signal.setitimer(signal.ITIMER_PROF, 0)
    pipe.send((None, ""))


def fuzz(reader: Reader, seeds: range) -> Iterator[tuple[int, str]]:
    """(seed, what happened) of every file that ended in anything but success or an InputError."""
    context = multiprocessing.get_context("fork")
    at = seeds.start
    while at < seeds.stop:
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(reader, range(at, seeds.stop), send))
        worker.start()
        send.close()
        current: int | None = -1
        with contextlib.suppress(EOFError):
            while current is not None:
                current, wrong = receive.recv()
                if wrong:
                    yield current, wrong
        worker.join()
        if current is None:
            return
        yield current, f"the process ended with {worker.exitcode} (-{signal.SIGPROF.value}: it took more than {SECONDS} s)"
        if current < 0:
            return
        at = current + 1


def main() -> None:
    """Fuzz one reader or all, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="how many, over all readers")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--reader", nargs="*", help="only these")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where files that fail are kept")
    options = parser.parse_args()
    found = readers()
    chosen = {name: found[name] for name in options.reader or found}
    shares, failures, done = sum(reader.share for reader in chosen.values()), 0, 0
    for name, reader in chosen.items():
        seeds = range(options.first, options.first + max(1, round(options.files * reader.share / shares)))
        start, failed = time.perf_counter(), 0
        for seed, wrong in fuzz(reader, seeds):
            failed += 1
            kept = options.keep / f"{name}-{seed}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / "what.txt").write_text(wrong)
            rng = random.Random(seed)
            which = rng.choice(reader.changed)
            (kept / which).write_bytes(reader.mutate(reader.files[which], rng))
            print(f"{name}, seed {seed}: {wrong.strip().splitlines()[-1][:300]}", flush=True)
        failures, done = failures + failed, done + len(seeds)
        print(f"{name}: {len(seeds):,} files, {failed} failures, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{done:,} files, {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
