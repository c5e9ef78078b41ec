"""A Hugging Face model directory or hub id -> a `Model`, its parameters and what is needed to write it back."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ftjax.errors import InputError, did_you_mean
from ftjax.models import CONFIGS, Classifier, Config, Lora, Model, Params, build, initial_value, with_lora
from ftjax.models.shapes import SHAPES
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.names import TABLES, NameTable
from ftjax.pretrained.tensors import read_json, read_tensors

FLOATS = (np.dtype("float32"), np.dtype("float16"), np.dtype("float64"), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a model directory holds.

    model and params: the architecture with the heads asked for, and its float32 values (flat: dotted name -> array).
    new: names of parameters that the files did not have and that were initialised.
    carried: tensors of the files (their names) that the model does not use, kept for an export that loses nothing.
    dtypes: the files' dtype of each parameter. base_only: whether the files hold a base model, its names unprefixed.
    labels: class names in the order of the classifier's outputs, or () without a classifier.
    raw_config: config.json as read.
    """

    directory: Path
    model: Model
    params: Params
    new: tuple[str, ...]
    carried: dict[str, np.ndarray]
    dtypes: dict[str, np.dtype]
    base_only: bool
    labels: tuple[str, ...]
    classifier: Classifier
    raw_config: dict[str, Any]


def read_config(directory: Path | str) -> tuple[Config, dict[str, Any], NameTable]:
    """config.json as (config, dictionary, name table); InputError for an architecture that is not supported.

    directory: or the name of a shape without weights, see `ftjax.models.shapes`.
    """
    raw = SHAPES[directory] if isinstance(directory, str) else read_json(directory / "config.json")
    model_type = raw.get("model_type")
    if model_type not in CONFIGS:
        near = did_you_mean(str(model_type), CONFIGS)
        raise InputError(
            f"{directory}: architecture {model_type!r} is not supported; supported are: {', '.join(CONFIGS)}.{near}"
        )
    return CONFIGS[model_type].from_dict(raw, f"{directory}/config.json"), raw, TABLES[model_type]


def saved_labels(raw_config: dict[str, Any]) -> tuple[str, ...]:
    """Class names of config.json's id2label in the order of their numbers, or ()."""
    id2label = raw_config.get("id2label") or {}
    try:
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    except (TypeError, ValueError):
        raise InputError("config.json: id2label must map numbers to names.") from None


def unnamed(number: int) -> tuple[str, ...]:
    """What transformers calls classes without names, and leaves out of config.json when there are two."""
    return tuple(f"LABEL_{i}" for i in range(number))


def saved_classifier(raw_config: dict[str, Any]) -> Classifier:
    """Which classification head a directory's weights belong to; ours are marked in config.json."""
    return "first-token" if raw_config.get("ftjax_classifier") == "first-token" else "pooled"


def read_canonical(directory: Path, table: NameTable) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors by the table's spelling of their names, and how the files spell each. InputError for one given twice."""
    tensors: dict[str, np.ndarray] = {}
    spelled: dict[str, str] = {}
    for name, array in read_tensors(directory):
        canonical = table.canonical(name)
        if canonical in tensors:
            raise InputError(f"{directory}: {name} and {spelled[canonical]} are the same weight.")
        tensors[canonical], spelled[canonical] = array, name
    return tensors, spelled


def load_pretrained(
    name_or_directory: str | Path,
    *,
    labels: tuple[str, ...] | None = None,
    classifier: Classifier | None = None,
    masked_lm: bool = False,
    precision: str = "float32",
    dropout: float | None = None,
    seed: int = 0,
) -> Pretrained:
    """Load a model with the heads asked for.

    labels: class names for a classification head; None takes the head that the files hold, if any. A head in the
        files that is of another kind or has other class names is left aside and a new one initialised.
    classifier: "pooled" or "first-token" (see `ftjax.models.heads`); None takes the files' kind, or pooled.
    masked_lm: add the masked-language-modelling head, from the files or new.
    precision: operand dtype of dot products, "float32" or "bfloat16"; parameters are float32 either way.
    dropout: a rate for all dropout instead of the config's.
    seed: for what is initialised; each parameter's value depends on the seed and its own name alone.

    Raises InputError for a missing or damaged directory, an unsupported architecture, and unexpected, misshapen or
    missing weights, which it names.
    """
    directory = model_directory(name_or_directory)
    config, raw_config, table = read_config(directory)
    if dropout is not None:
        config = config.with_dropout(dropout)
    tensors, spelled = read_canonical(directory, table)
    rows = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
    in_files = (saved_labels(raw_config) or unnamed(rows)) if rows else ()
    if len(in_files) != rows:
        raise InputError(f"{directory}: classifier.weight has {rows} rows but config.json names {len(in_files)} labels.")
    kind = classifier or saved_classifier(raw_config)
    labels = in_files if labels is None else labels
    numbered = in_files == unnamed(rows) and labels == tuple(map(str, range(rows)))
    fits = rows > 0 and (labels == in_files or numbered) and kind == saved_classifier(raw_config)

    model = build(
        config,
        num_labels=len(labels) or None,
        classifier=kind,
        pooler=kind == "pooled" and "bert.pooler.dense.weight" in tensors,
        masked_lm=masked_lm,
        precision=precision,
    )
    params: Params = {}
    dtypes: dict[str, np.dtype] = {}
    new: list[str] = []
    used: set[str] = set()
    misshapen: list[str] = []
    for ours, expected in model.shapes.items():
        theirs, transposed = table.theirs(ours)
        array = tensors.get(theirs)
        if array is None or (ours.startswith("classifier.") and not fits):
            new.append(ours)
            continue
        used.add(theirs)
        shape = expected.shape[::-1] if transposed else expected.shape
        if array.shape != shape or array.dtype not in FLOATS:
            misshapen.append(f"{spelled[theirs]} is {array.dtype} {list(array.shape)}, expected float {list(shape)}")
            continue
        value = array.astype(np.float32)
        params[ours] = jnp.asarray(value.T if transposed else value)
        dtypes[ours] = array.dtype

    if misshapen:
        raise InputError(f"{directory}: wrongly shaped weights for its config.json: {_some(misshapen)}.")
    unexpected = [spelled[n] for n in tensors if n not in used and not table.is_carried(n)]
    if unexpected:
        raise InputError(f"{directory}: unexpected weights: {_some(unexpected)}; is config.json that of another model?")
    if lost := [name for name in new if name.startswith(config.parts)]:
        raise InputError(f"{directory}: missing weights: {_some([table.theirs(name)[0] for name in lost])}.")

    params |= _initialised(model, new, seed)
    return Pretrained(
        directory=directory,
        model=model,
        params={name: params[name] for name in model.shapes},
        new=tuple(new),
        carried={spelled[n]: array for n, array in tensors.items() if n not in used},
        dtypes=dtypes,
        base_only=not any(spelled[n].startswith(table.prefix) for n in tensors),
        labels=tuple(labels),
        classifier=kind,
        raw_config=raw_config,
    )


def add_lora(pretrained: Pretrained, lora: Lora, *, seed: int = 0) -> Pretrained:
    """The same with new low-rank matrices, which change nothing before they are trained."""
    model = with_lora(pretrained.model, lora)
    new = [name for name in model.shapes if name not in pretrained.params]
    params = {**pretrained.params, **_initialised(model, new, seed)}
    return dataclasses.replace(
        pretrained, model=model, params={name: params[name] for name in model.shapes}, new=(*pretrained.new, *new)
    )


def _initialised(model: Model, names: list[str], seed: int) -> Params:
    key = jax.random.key(seed)
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}
    return {n: initial_value(n, model.shapes[n].shape, k, model.config.initializer_range) for n, k in keys.items()}


def _some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
