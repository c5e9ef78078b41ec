"""GGUF files (llama.cpp's format: metadata, tokenizer and quantised weights in one file) as config, tensors and tokenizer.

Only Llama's architecture is read. The file is not trusted: every length is checked against what is left of it before
anything is allocated. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftjax.errors import InputError, refusing
from ftjax.pretrained.tensors import Header, rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUFFIX = ".gguf"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

CONFIG = {
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.key_length": "head_dim",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.context_length": "max_position_embeddings",
    "llama.rope.freq_base": "rope_theta",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
"""Metadata to entries of config.json."""
CHECKED = ("llama.vocab_size", "llama.rope.dimension_count", "llama.attention.value_length", "llama.expert_count")
"""Metadata that must say what the rest says already."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors to their names in Hugging Face's files; those of layer N begin with blk.N there and model.layers.N here."""

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
NATIVE = {"F32": "float32", "F16": "float16"}  # number formats that are numpy's as they are


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor is. shape: as in PyTorch, the last axis contiguous. kind: of ggml's number formats. start: in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


class Reader:
    """The file's bytes in order; InputError where they end too early."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place = path, data, 0

    def error(self, what: str) -> InputError:
        """The exception for a file that cannot be right."""
        return InputError(f"{self.path}: not a whole GGUF file ({what}); download or copy it again.")

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if not 0 <= size <= len(self.data) - self.place:
            raise self.error(f"it ends within {size:,} bytes at {self.place:,}")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, kind: str) -> Any:
        """The next number, of a format of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        """The next string."""
        try:
            return self.take(self.number("<Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a name is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next value of the metadata."""
        if kind in SCALARS:
            number = self.number(SCALARS[kind])
            return float(str(np.float32(number))) if SCALARS[kind] == "<f" else number  # 1e-05, not 9.999999747378752e-06
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.error(f"type {kind} of a value")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            width = struct.calcsize(SCALARS[inner])
            return np.frombuffer(self.take(count * width), SCALARS[inner].replace("?", "b")).tolist()
        if inner != STRING:
            raise self.error(f"an array of type {inner}")
        if count > (len(self.data) - self.place) // 8:  # a string takes 8 bytes at least
            raise self.error(f"an array of {count:,} strings")
        return [self.text() for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class File:
    """A GGUF file's metadata and where its tensors are."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def is_gguf(path: Path) -> bool:
    """Whether a model is a GGUF file and not a directory."""
    return path.suffix == SUFFIX and path.is_file()


def quantisation() -> Any:
    """The library that knows ggml's number formats; InputError where it is missing."""
    try:
        import gguf
    except ImportError:
        raise InputError("A .gguf file needs the package gguf: pip install 'ftjax[gguf]'.") from None
    return gguf


def read(path: Path) -> File:
    """Read everything but the numbers; InputError for a file that is damaged or not of Llama's architecture."""
    gguf = quantisation()
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None
    reader = Reader(path, data)
    if reader.take(4) != b"GGUF":
        raise InputError(f"{path}: not a GGUF file.")
    if (version := reader.number("<I")) not in (2, 3):
        raise InputError(f"{path}: GGUF version {version} is not supported; 2 and 3 are.")
    tensor_count, value_count = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        name = reader.text()
        metadata[name] = reader.value(reader.number("<I"))
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, axes = reader.text(), reader.number("<I")
        if not 1 <= axes <= 4:
            raise reader.error(f"{name} has {axes} axes")
        shape = tuple(reader.number("<Q") for _ in range(axes))[::-1]
        found[name] = (shape, reader.number("<I"), reader.number("<Q"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise reader.error(f"alignment {alignment!r}")
    first = -(-reader.place // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in found.items():
        tensors[name] = Tensor(shape, kind, first + offset)
        size = _bytes(gguf, tensors[name])
        if size is None:
            raise InputError(f"{path}: {name} has the number format {kind}, which is not supported.")
        if first + offset + size > len(data):
            raise reader.error(f"{name} lies beyond its end")
    if (kind := metadata.get("general.architecture")) != "llama":
        raise InputError(f"{path}: architecture {kind!r} is not supported in GGUF; only 'llama' is.")
    return File(metadata, tensors)


def _bytes(gguf: Any, tensor: Tensor) -> int | None:
    """The size of a tensor in the file, or None for a format that is unknown or does not fit its rows."""
    try:
        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        return None
    return math.prod(tensor.shape) // block * width if tensor.shape[-1] % block == 0 else None


def raw_config(path: Path) -> dict[str, Any]:
    """What config.json would say; InputError for metadata that is missing, or that would change the result and is not known."""
    file = read(path)
    metadata, tensors = file.metadata, file.tensors
    for name in metadata:
        if name.startswith("llama.") and name not in CONFIG and name not in CHECKED:
            raise InputError(f"{path}: {name}={metadata[name]!r} is not supported.")
    config = {ours: metadata[name] for name, ours in CONFIG.items() if name in metadata}
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise InputError(f"{path}: missing weights: token_embd.weight.")
    config |= {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps"):
        if name not in config:
            raise InputError(f"{path}: its metadata lack {next(n for n, ours in CONFIG.items() if ours == name)}.")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or (hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads else 0)
    expected = dict(zip(CHECKED, (config["vocab_size"], size, size, 0), strict=True))
    for name, value in expected.items():
        if metadata.get(name, value) != value:
            raise InputError(f"{path}: {name}={metadata[name]!r} is not supported; only {value} is.")
    return config


class GgufWeights:
    """The tensors of a GGUF file, see `ftjax.pretrained.tensors.Weights`; quantised ones as float32.

    llama.cpp turns neighbouring features of a head together where Hugging Face turns the halves, so it keeps the rows of
    queries and keys in another order, which is undone here.
    """

    def __init__(self, path: Path) -> None:
        self._gguf, self._path, file = quantisation(), path, read(path)
        heads = file.metadata.get("llama.attention.head_count")
        turned = {"attn_q": heads, "attn_k": file.metadata.get("llama.attention.head_count_kv", heads)}
        self.headers: dict[str, Header] = {}
        self._tensors: dict[str, Tensor] = {}
        self._heads: dict[str, int] = {}
        for original, tensor in file.tensors.items():
            name, part = _their_name(original), original.split(".")[-2] if "." in original else ""
            if name in self.headers:
                raise InputError(f"{path}: has {name} twice.")
            if part in turned:
                number = turned[part]
                if not isinstance(number, int) or number < 1 or tensor.shape[0] % (2 * number):
                    raise InputError(f"{path}: {original} is {list(tensor.shape)}, which is not {number} heads of pairs.")
                self._heads[name] = number
            kind = self._gguf.GGMLQuantizationType(tensor.kind).name
            self.headers[name], self._tensors[name] = Header(tensor.shape, np.dtype(NATIVE.get(kind, "float32"))), tensor

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong, see `Weights`; queries and keys come whole."""
        shape = self.headers[name].shape
        if name in self._heads:
            pairs = self._rows(name, 0, shape[0]).reshape(self._heads[name], -1, 2, *shape[1:])
            yield ..., pairs.swapaxes(1, 2).reshape(shape)  # in each head first members first
        elif len(shape) == 1:
            yield ..., self._rows(name, 0, shape[0])
        else:
            for where in rows(self.headers[name]):
                yield where, self._rows(name, where.start, where.stop)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor as numbers; its pages of the file are read, not mapped, so that they do not stay."""
        tensor, header = self._tensors[name], self.headers[name]
        kind, size = self._gguf.GGMLQuantizationType(tensor.kind), _bytes(self._gguf, tensor) or 0
        first, last = (size * row // max(header.shape[0], 1) for row in (start, stop))
        try:
            raw = np.fromfile(self._path, np.uint8, last - first, offset=tensor.start + first)
            if len(raw) < last - first:
                raise ValueError("it ends too early")
            raw = raw.reshape(*((stop - start,) if len(header.shape) > 1 else ()), *header.shape[1:-1], -1)
            return raw.view(header.dtype) if kind.name in NATIVE else self._gguf.dequantize(raw, kind)
        except NotImplementedError:
            raise InputError(f"{self._path}: {name} has the number format {kind.name}, which is not supported.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path}: cannot be read ({error}).") from None


def _their_name(name: str) -> str:
    """blk.3.attn_q.weight to model.layers.3.self_attn.q_proj.weight; a name that is not known stays."""
    *layer, part, kind = name.split(".") if "." in name else ("", name, "")
    if part not in NAMES:
        return name
    prefix = f"model.layers.{layer[1]}." if len(layer) == 2 and layer[0] == "blk" else ""
    return f"{prefix}{NAMES[part]}.{kind}"


def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the file's metadata, byte-level BPE, with its chat template; InputError for another kind."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no "PyTorch was not found": none is needed
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    metadata = read(path).metadata
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), whole]),
    }
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in splits:
        raise InputError(
            f"{path}: its tokenizer is {kind!r} with pre-tokenizer {split!r}; supported is 'gpt2' with {', '.join(splits)}."
        )
    tokens, merges = (metadata.get(f"tokenizer.ggml.{what}", []) for what in ("tokens", "merges"))
    kinds = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens or ())
    if not (_texts(tokens) and _texts(merges) and isinstance(kinds, list) and len(kinds) == len(tokens)):
        raise InputError(f"{path}: its tokenizer lacks tokens or merges.")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    with refusing(f"{path}: its tokenizer cannot be made"):
        made = Tokenizer(
            models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs, ignore_merges=split == "llama-bpe")
        )
        made.pre_tokenizer, made.decoder = splits[split], decoders.ByteLevel()
        added = [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
        made.add_tokens(added)
        special = {}
        for name in ("bos", "eos", "unknown", "padding"):
            number = metadata.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(number, int) and 0 <= number < len(tokens):
                special[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[number]
        if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in special:
            bos = special["bos_token"]
            made.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
            )
        template = metadata.get("tokenizer.chat_template")
        return PreTrainedTokenizerFast(
            tokenizer_object=made,
            chat_template=template if isinstance(template, str) else None,
            clean_up_tokenization_spaces=False,
            **special,
        )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
