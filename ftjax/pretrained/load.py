"""A Hugging Face model directory or hub id -> a `Model`, its parameters and what is needed to write it back."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ftjax.errors import InputError, did_you_mean
from ftjax.models import (
    CONFIGS,
    SEQ2SEQ,
    Classifier,
    Cloze,
    Config,
    Lora,
    Model,
    Params,
    build,
    initial_value,
    kernel_of,
    merge_lora,
    nf4,
    with_4bit,
    with_lora,
)
from ftjax.models.layers import column_norms
from ftjax.models.names import SPANS, TOKENS, NameTable
from ftjax.models.shapes import SHAPES
from ftjax.pretrained import gguf, keras
from ftjax.pretrained.adapter import Adapter, Replaced, attach, locate, read_adapter
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.tensors import INDEX, SINGLE, Parts, SafeTensors, Weights, read_json, safetensors_files

FLOATS = (np.dtype("float32"), np.dtype("float16"), np.dtype("float64"), np.dtype(ml_dtypes.bfloat16))
NOTES = {
    **{"architectures": list, "problem_type": str, "ftjax_task": str, "ftjax_masking": dict, "ftjax_max_target_length": int},
    "ftjax_cloze": dict,
}
"""What tells the task of a trained model in config.json -> its type."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin", "model.ckpt", "flax_model.msgpack")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a model directory, or a GGUF file, holds.

    model and params: the architecture with the heads asked for, and its float32 values (flat: dotted name -> array).
    new: names of parameters that the files did not have and that were initialised.
    spelled: what the files call each of the others. dtypes: the files' dtype of each.
    carried: tensors of the files (their names) that the model does not use: an export that loses nothing reads them again.
    labels: class names in the order of the classifier's outputs, or () without a classifier.
    classifier: the kind of head that these would have; None where the architecture has none.
    raw_config: config.json as read.
    problem_type: what config.json will call a classifier's problem; None: it will not.
    adapted: names of the parameters that an adapter has in the place of the directory's.
    """

    directory: Path
    model: Model
    params: Params
    new: tuple[str, ...]
    spelled: dict[str, str]
    dtypes: dict[str, np.dtype]
    carried: tuple[str, ...]
    labels: tuple[str, ...]
    classifier: Classifier | None
    raw_config: dict[str, Any]
    problem_type: str | None = "single_label_classification"
    adapted: tuple[str, ...] = ()


def read_config(directory: Path | str, adapter: Path | None = None) -> tuple[Config, dict[str, Any], NameTable]:
    """config.json, or a GGUF file's metadata, as (config, dictionary, name table).

    directory: or the name of a shape without weights, see `ftjax.models.shapes`. adapter: the directory of one, whose changes
    the dictionary then has. InputError for an architecture that is not supported.
    """
    if isinstance(directory, str):
        source, raw = Path(directory), SHAPES[directory]
    else:
        source = directory if gguf.is_gguf(directory) else directory / "config.json"
        raw = gguf.raw_config(source) if gguf.is_gguf(source) else read_json(source)
    _check_notes(raw, source)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        near = did_you_mean(str(model_type), CONFIGS)
        raise InputError(
            f"{directory}: architecture {model_type!r} is not supported; supported are: {', '.join(CONFIGS)}.{near}"
        )
    config = CONFIGS[model_type].from_dict(raw, str(source))
    if adapter is not None:
        raw = read_adapter(adapter).config_after(raw)
        _check_notes(raw, adapter)
    return config, raw, config.names


def _check_notes(raw: dict[str, Any], source: Path) -> None:
    """InputError for a config.json whose words on its task are of another type than they must be."""
    for name, kind in NOTES.items():
        if not isinstance(value := raw.get(name), kind | None):
            raise InputError(f"{source}: {name} is {value!r}, which is no {kind.__name__}.")
    if not all(isinstance(name, str) for name in raw.get("architectures") or ()):
        raise InputError(f"{source}: architectures is {raw['architectures']!r}, not a list of names.")


def refuse_seq2seq(config: Config, source: str) -> None:
    """InputError for an encoder and decoder, which write texts and do nothing else."""
    if type(config) in SEQ2SEQ:
        raise InputError(
            f"{source}: {config.model_type} has an encoder and a decoder, which turn texts into others: take --task seq2seq, "
            "or ftjax generate."
        )


def saved_labels(raw_config: dict[str, Any]) -> tuple[str, ...]:
    """Class names of config.json's id2label in the order of their numbers, or ()."""
    id2label = raw_config.get("id2label") or {}
    try:
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    except (TypeError, ValueError, LookupError):
        raise InputError("config.json: id2label must map numbers to names.") from None


def unnamed(number: int) -> tuple[str, ...]:
    """What transformers calls classes without names, and leaves out of config.json when there are two."""
    return tuple(f"LABEL_{i}" for i in range(number))


def saved_classifier(config: Config, raw_config: dict[str, Any]) -> Classifier | None:
    """Which classification head a directory's weights belong to: the class's in config.json, or the one that we marked."""
    ends: dict[str, Classifier] = {TOKENS: "every-token", SPANS: "span"}
    named = next((kind for end, kind in ends.items() if saved_class(raw_config).endswith(end)), None)
    marked = raw_config.get("ftjax_classifier")
    return next((kind for kind in (named, marked) if kind in config.classifiers), config.own_classifier)


def noted_cloze(raw_config: dict[str, Any]) -> tuple[str, dict[str, tuple[str, ...]]] | None:
    """The template and, by class, the words of a cloze that a model was trained with, as config.json has them.

    InputError where that is damaged.
    """
    if raw_config.get("ftjax_classifier") != "cloze":
        return None
    noted = raw_config.get("ftjax_cloze") or {}
    template, words = noted.get("template"), noted.get("words")
    if not (
        isinstance(template, str)
        and isinstance(words, dict)
        and all(isinstance(found, dict) and found for found in words.values())
        and all(type(noted.get(name)) is int for name in ("before", "after", "gap"))
    ):
        raise InputError("config.json: ftjax_cloze must hold a template, the classes' words, before, after and gap.")
    return template, {name: tuple(found) for name, found in words.items()}


def saved_cloze(raw_config: dict[str, Any], labels: tuple[str, ...], config: Config) -> Cloze:
    """The same as the classifier of these classes needs it."""
    if noted_cloze(raw_config) is None:
        raise ValueError("A classifier of this kind needs to know its cloze.")
    noted = raw_config["ftjax_cloze"]
    tokens = tuple(tuple(noted["words"].get(label, {}).values()) for label in labels)
    if not all(every and all(type(t) is int and 0 <= t < config.vocab_size for t in every) for every in tokens):
        raise InputError(
            "config.json: ftjax_cloze has not a token of the vocabulary for every word of every class in id2label."
        )
    before, after, gap = (noted[name] for name in ("before", "after", "gap"))
    if min(before, after) < 0 or before + after >= config.max_length or abs(gap) >= config.max_length:
        raise InputError("config.json: ftjax_cloze has before, after or gap beyond the longest row.")
    return Cloze(tokens, before, after, gap)


def saved_class(raw_config: dict[str, Any]) -> str:
    """transformers' class that a directory was saved from, or ""."""
    named = raw_config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def open_weights(directory: Path, table: NameTable, adapter: Adapter | None = None) -> Weights:
    """The tensors of a GGUF file or a directory, those that the table takes apart by their parts; an adapter's before them."""
    weights = gguf.GgufWeights(directory) if gguf.is_gguf(directory) else _weights_in(directory)
    return Parts(weights if adapter is None else Replaced(weights, adapter, table), table.parts, directory)


def _weights_in(directory: Path) -> Weights:
    """Those of safetensors, or else of Keras. InputError where there are none, or only pickled ones."""
    if files := safetensors_files(directory):
        return SafeTensors(files)
    if (directory / keras.SINGLE).is_file():
        return keras.KerasWeights(directory / keras.SINGLE)
    if (directory / keras.INDEX).is_file():
        raise InputError(f"{directory}: Keras weights in several files are not read; save them as safetensors first.")
    if pickled := [name for name in PICKLED if (directory / name).exists()]:
        raise InputError(
            f"{directory}: holds only {pickled[0]}, which is refused because unpickling can run code; convert it first: "
            "AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True) in PyTorch."
        )
    raise InputError(f"{directory}: no weights; expected {SINGLE} or {INDEX} with its shards.")


def spell(weights: Weights, table: NameTable, directory: Path) -> dict[str, str]:
    """The table's spelling of every tensor's name -> the files' own. InputError for a tensor given twice."""
    spelled: dict[str, str] = {}
    for name in weights.headers:
        canonical = table.canonical(name)
        if canonical in spelled:
            raise InputError(f"{directory}: {name} and {spelled[canonical]} are the same weight.")
        spelled[canonical] = name
    return spelled


def read_parameter(weights: Weights, name: str, shape: tuple[int, ...], *, transposed: bool) -> np.ndarray:
    """A tensor as a float32 parameter of our shape.

    On a CPU the array read into becomes the parameter: `device_put` takes one at a multiple of 64 bytes as it is, without
    a copy.
    """
    size = math.prod(shape)
    memory = np.empty(size + 16, np.float32)
    start = -memory.ctypes.data // 4 % 16
    value = memory[start : start + size].reshape(shape)
    target = value.T if transposed else value
    for where, block in weights.blocks(name):
        target[where] = block
    return value


def check_copies(
    weights: Weights, table: NameTable, spelled: dict[str, str], read: dict[str, str], params: Params, directory: Path
) -> None:
    """InputError for a tensor that should repeat a parameter and does not: the files' model ties what ours ties.

    spelled: see `spell`. read: our names -> the names in the files that they were read from.
    """
    for theirs, ours in table.copies:
        if theirs in spelled and ours in read and spelled[theirs] not in read.values():
            value, copy = np.asarray(params[ours]), spelled[theirs]
            same = weights.headers[copy].shape == value.shape and all(
                np.array_equal(value[where], block.astype(np.float32)) for where, block in weights.blocks(copy)
            )
            if not same:
                raise InputError(
                    f"{directory}: {copy} differs from {read[ours]}; this architecture is supported only where they are tied."
                )


def load_pretrained(
    name_or_directory: str | Path,
    *,
    adapter: str | Path | None = None,
    labels: tuple[str, ...] | None = None,
    classifier: Classifier | None = None,
    cloze: Cloze | None = None,
    masked_lm: bool = False,
    causal_lm: bool = False,
    scan: bool = False,
    precision: str = "float32",
    dropout: float | None = None,
    seed: int = 0,
    put: Callable[[str, np.ndarray], jax.Array] | None = None,
    from_scratch: bool = False,
) -> Pretrained:
    """Load a model with the heads asked for.

    name_or_directory: a directory, .gguf file or hub id of a model; or of an adapter, which names its model.
    adapter: an adapter in PEFT's format for the model, a directory or hub id. Its low-rank matrices come beside the kernels;
        `merge` puts them in.
    labels: class names for a classification head; None takes the head that the files hold, if any. A head in the
        files that is of another kind or has other class names is left aside and a new one initialised.
    classifier: the head's kind (see `ftjax.models.body.Classifier`); None takes the files', or the architecture's own.
    cloze: what a classifier of that kind reads, with the words of every label; None takes the files'.
    masked_lm, causal_lm: add the head that predicts masked tokens, or the next one, from the files or new.
    scan: see `ftjax.models.build`.
    precision: operand dtype of dot products, "float32" or "bfloat16"; parameters are float32 either way.
    dropout: a rate for all dropout instead of the config's.
    seed: for what is initialised; each parameter's value depends on the seed and its own name alone.
    put: (name, whole value) -> the array to keep, as soon as a parameter has been read; None: whole, on one device.
    from_scratch: read config.json alone, and initialise every parameter.

    Raises InputError for a missing or damaged directory, an unsupported architecture, unexpected, misshapen or
    missing weights, which it names, and an adapter for another model.
    """
    name_or_directory, adapter = locate(name_or_directory, adapter)
    directory = model_directory(name_or_directory)
    config, raw_config, table = read_config(directory, adapter)
    adapted = None if adapter is None else read_adapter(adapter)
    if dropout is not None:
        config = config.with_dropout(dropout)
    saved = saved_classifier(config, raw_config)
    in_words = saved_labels(raw_config) if saved == "cloze" else ()
    other = saved == "cloze" and cloze is None and labels not in (None, (), in_words)  # their words are not known
    kind = classifier or (config.own_classifier if other else saved)
    reads_words = kind == "cloze" and labels != ()
    _check_heads(
        config,
        raw_config,
        directory,
        kind,
        classify=bool(labels or classifier),
        masked_lm=masked_lm or (reads_words and not config.causal),
        causal_lm=causal_lm,
    )
    kept = table.with_classifier(saved)
    weights: Weights = SafeTensors([]) if from_scratch else open_weights(directory, kept, adapted)
    spelled = spell(weights, table, directory)
    config = config.for_files(["lm_head.weight"] if from_scratch else spelled)
    head = spelled.get(kept.theirs("classifier.kernel")[0]) if config.classifiers else None
    rows = (weights.headers[head].shape or (0,))[0] if head else 0
    in_files = in_words if not rows else unnamed(rows) if saved == "span" else saved_labels(raw_config) or unnamed(rows)
    if adapted is not None and head in adapted.whole and len(in_files) != rows:
        in_files = unnamed(rows)  # PEFT keeps no names of classes
    if len(in_files) != rows and not in_words:
        raise InputError(f"{directory}: {head} has {rows} rows but config.json names {len(in_files)} labels.")
    labels = in_files if labels is None else labels
    numbered = in_files == unnamed(rows) and labels == tuple(map(str, range(rows)))
    fits = rows > 0 and (labels == in_files or numbered) and kind == saved
    table = table.with_classifier(kind)
    if reads_words and labels:
        cloze = cloze or saved_cloze(raw_config, labels, config)

    model = build(
        config,
        num_labels=len(labels) or None,
        classifier=kind,
        pooler=kind == "pooled" and table.theirs("pooler.kernel")[0] in spelled,
        masked_lm=masked_lm,
        causal_lm=causal_lm,
        scan=scan,
        cloze=cloze if reads_words and labels else None,
        precision=precision,
    )
    named = {ours: table.theirs(ours) for ours in model.shapes}
    own = {theirs for theirs, _ in named.values()}
    read: dict[str, str] = {}
    new: list[str] = []
    misshapen: list[str] = []
    for ours, (theirs, transposed) in named.items():
        spellings = [theirs, *(copy for copy in table.copies_of(ours) if copy not in own)]
        found = next((name for name in spellings if name in spelled), None)
        if found is None or (ours.startswith("classifier.") and not fits):
            new.append(ours)
            continue
        read[ours] = spelled[found]
        header, shape = weights.headers[spelled[found]], model.shapes[ours].shape
        shape = shape[::-1] if transposed else shape
        if header.shape != shape or header.dtype not in FLOATS:
            misshapen.append(f"{spelled[found]} is {header.dtype} {list(header.shape)}, expected float {list(shape)}")
    if misshapen:
        raise InputError(f"{directory}: wrongly shaped weights for its config.json: {_some(misshapen)}.")
    used = set(read.values())
    unexpected = [name for canonical, name in spelled.items() if name not in used and not table.is_carried(canonical)]
    if unexpected:
        raise InputError(f"{directory}: unexpected weights: {_some(unexpected)}; is config.json that of another model?")
    if not from_scratch and (lost := [name for name in new if name.startswith(config.parts)]):
        raise InputError(f"{directory}: missing weights: {_some([named[name][0] for name in lost])}.")

    params = _initialised(model, new, seed)
    for ours, name in read.items():
        value = read_parameter(weights, name, model.shapes[ours].shape, transposed=named[ours][1])
        params[ours] = jax.device_put(value) if put is None else put(ours, value)
    if (
        any(dict(model.heads)[head] for head in ("masked_lm", "causal_lm")) or not config.classifiers
    ):  # without a classifier: a model that always predicts tokens
        check_copies(weights, table, spelled, read, params, directory)
    replaced = () if adapted is None else tuple(ours for ours, name in read.items() if name.partition("/")[0] in adapted.whole)
    if adapted is not None:
        model, params = attach(model, params, adapted, table)
    return Pretrained(
        directory=directory,
        model=model,
        params={name: params[name] for name in model.shapes},
        new=tuple(new),
        spelled=read,
        dtypes={ours: weights.headers[name].dtype for ours, name in read.items()},
        carried=tuple(name for name in spelled.values() if name not in used),
        labels=tuple(labels),
        classifier=kind,
        raw_config=raw_config,
        adapted=replaced,
    )


def _check_heads(
    config: Config,
    raw_config: dict[str, Any],
    directory: Path,
    classifier: Classifier | None,
    *,
    classify: bool,
    masked_lm: bool,
    causal_lm: bool,
) -> None:
    """InputError for heads that the architecture does not have. classify: whether a classifier, of this kind, is asked for."""
    model = f"{directory}: {config.model_type}"
    if classify and classifier not in config.classifiers:
        kind, has = f"{classifier} " if classifier else "", " or ".join(config.classifiers) or "none"
        raise InputError(f"{model} has no {kind}classification head; it has {has}.")
    if masked_lm and not config.has_masked_lm:
        other = "; a decoder predicts the next token: take causal-lm" if config.causal else ""
        raise InputError(f"{model} has no head for masked language modelling (masked-lm){other}.")
    if causal_lm and not config.causal:
        other = "; an encoder predicts masked tokens: take masked-lm" if config.has_masked_lm else ""
        raise InputError(f"{model} has no head for the next token (causal-lm){other}.")
    if masked_lm and raw_config.get("tie_word_embeddings", True) is False:
        raise InputError(
            f"{directory}: tie_word_embeddings=false is not supported; masked language modelling reads the word embeddings."
        )


def check_cloze(directory: Path, adapter: Path | None = None) -> None:
    """InputError for files without the head that predicts tokens, which a classifier by words reads; told by names alone."""
    config, _, table = read_config(directory, adapter)
    spelled = spell(open_weights(directory, table, None if adapter is None else read_adapter(adapter)), table, directory)
    model = build(config.for_files(spelled), masked_lm=config.has_masked_lm, causal_lm=config.causal)
    names = [ours for ours in model.shapes if ours.startswith(("masked_lm.", "lm_head."))]
    spellings = {ours: (table.theirs(ours)[0], *table.copies_of(ours)) for ours in names}
    if any(not any(name in spelled for name in found) for found in spellings.values()):
        lacks, loss = (
            ("head for the next token", "causal-lm") if config.causal else ("masked-language-modelling head", "masked-lm")
        )
        raise InputError(
            f"{directory}: has no trained {lacks}, which a cloze reads; take another way to classify, or train one "
            f"first, as --adapt-epochs of ftjax train does by {loss}."
        )


def add_lora(pretrained: Pretrained, lora: Lora, *, seed: int = 0) -> Pretrained:
    """The same with new low-rank matrices, which change nothing before they are trained; DoRA's magnitudes are the kernels'."""
    model = with_lora(pretrained.model, lora)
    new = [name for name in model.shapes if name not in pretrained.params]
    params = {**pretrained.params, **_initialised(model, new, seed)}
    for name in lora.modules if lora.dora else ():
        if not isinstance(next(iter(pretrained.params.values())), jax.ShapeDtypeStruct):
            params[f"{name}.lora_magnitude"] = column_norms(kernel_of(params, name))
    return dataclasses.replace(
        pretrained, model=model, params={name: params[name] for name in model.shapes}, new=(*pretrained.new, *new)
    )


def in_4bit(pretrained: Pretrained, modules: tuple[str, ...]) -> Pretrained:
    """The same with the kernels of these dense layers rounded to 4 bits."""
    params = dict(pretrained.params)
    for name in modules:
        kernel = params.pop(f"{name}.kernel")
        nf4.check(name, kernel.shape[0])
        kept = nf4.quantize if isinstance(kernel, jax.Array) else functools.partial(jax.eval_shape, nf4.quantize)
        params |= dict(zip((f"{name}{ending}" for ending in nf4.ENDINGS), kept(kernel), strict=True))
    model = with_4bit(pretrained.model, modules)
    return dataclasses.replace(pretrained, model=model, params={name: params[name] for name in model.shapes})


def merge(pretrained: Pretrained) -> Pretrained:
    """The same without low-rank matrices and 4 bits: in the kernels, which then are what the layers multiply by."""
    if pretrained.model.lora is None and not pretrained.model.in_4bit:
        return pretrained
    model = build(pretrained.model.config, **dict(pretrained.model.heads))
    params = merge_lora(pretrained.model, pretrained.params)
    return dataclasses.replace(pretrained, model=model, params={name: params[name] for name in model.shapes})


def _initialised(model: Model, names: list[str], seed: int) -> Params:
    key = jax.random.key(seed)
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}
    return {n: initial_value(n, model.shapes[n].shape, k, model.config.initializer_range) for n, k in keys.items()}


def _some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
