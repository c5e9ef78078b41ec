"""Adapters in the format of Hugging Face's PEFT, in and out: low-rank matrices beside a base model that stays where it is.

A directory holds adapter_config.json, which names the base model, and adapter_model.safetensors: under base_model.model. and
the base's own names of modules lora_A.weight (rank, in), lora_B.weight (out, rank), with DoRA lora_magnitude_vector (out,),
and whole tensors of modules that were trained besides, such as a classifier. Ours also say in config_changes.json what
the base's config.json cannot know: the class names. https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ftjax.errors import InputError
from ftjax.models import LORA, SEQ2SEQ, Lora, Model, Params, build, kernel_of, with_lora
from ftjax.models.layers import column_norms
from ftjax.models.names import SPANS, TOKENS, NameTable
from ftjax.pretrained.hub import exists, model_directory
from ftjax.pretrained.tensors import Header, SafeTensors, Weights, read_json, read_whole, write_tensors

CONFIG, WEIGHTS, CHANGES = "adapter_config.json", "adapter_model.safetensors", "config_changes.json"
PREFIX = "base_model.model."
LOW_RANK = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "alpha_pattern", "lora_dropout", "use_dora", "use_rslora"),
    *("base_model_name_or_path", "revision", "init_lora_weights"),
}
WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "bias", "rank_pattern", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
}
"""Settings that say what was trained or how; the tensors say it too. Any other that is set may change the result."""
OF_TOKENS = {"every-token": ("TOKEN_CLS", TOKENS), "span": ("QUESTION_ANS", SPANS)}
"""A classifier of tokens -> what PEFT calls its task, and how transformers' class for it ends."""
UNCHANGED_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to initialise that leave the base's kernels as they were."""


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (path / CONFIG).is_file()


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a directory holds. config: adapter_config.json. changes: to the base's config.json.

    modules: the base's name of a module -> the names in the file of "a", "b" and "magnitude". whole: the base's name of a
    tensor that takes the place of the base's own -> its name in the file.
    """

    directory: Path
    config: dict[str, Any]
    changes: dict[str, Any]
    weights: Weights
    modules: dict[str, dict[str, str]]
    whole: dict[str, str]

    def config_after(self, raw_config: dict[str, Any]) -> dict[str, Any]:
        """The base's config.json with the adapter's changes. InputError for a base of another architecture."""
        kind = self.changes.get("model_type", raw_config.get("model_type"))
        if kind != raw_config.get("model_type"):
            raise self.foreign(f"belongs to a {kind}, not to a {raw_config.get('model_type')}")
        return raw_config | self.changes

    def error(self, what: str) -> InputError:
        """The exception for an adapter that cannot be used."""
        return InputError(f"{self.directory}: {what}.")

    def foreign(self, what: str) -> InputError:
        """The exception for an adapter that does not fit the base."""
        return self.error(f"{what}; it is an adapter for another base model ({self.config.get('base_model_name_or_path')})")


def locate(model: str | Path, adapter: str | Path | None = None) -> tuple[str | Path, Path | None]:
    """(base model, the adapter's directory or None). model: a base, or an adapter, which names its base.

    Raises InputError for an adapter that is none, that names no base, or that names another one than `model`.
    """
    if adapter is None:
        path = model_directory(model)
        if not path.is_dir() or not is_adapter(path):
            return model, None
        config = read_json(path / CONFIG)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not isinstance(base, str) or not base:
            raise InputError(f"{path}: its {CONFIG} names no base model; give that with --model and this with --adapter.")
        return f"{base}@{revision}" if revision and not exists(Path(base)) else base, path
    path = model_directory(adapter)
    if not path.is_dir() or not is_adapter(path):
        raise InputError(f"--adapter {adapter}: no adapter; expected {CONFIG} and {WEIGHTS}.")
    base = read_json(path / CONFIG).get("base_model_name_or_path")
    if isinstance(base, str) and base and _last_word(base) != _last_word(model):
        raise InputError(
            f"--adapter {adapter}: made for the base model {base}, not for {model}; give --model {base}, or mend "
            f"base_model_name_or_path in its {CONFIG} if they are the same."
        )
    return model, path


def _last_word(model: str | Path) -> str:
    """What stays of a model's name when it is moved to another directory, or comes from a hub."""
    path = Path(model).expanduser()
    return (path.resolve() if exists(path) else path).name.partition("@")[0]


def read_adapter(directory: Path) -> Adapter:
    """Read what an adapter says of itself. InputError for one that is damaged, or does what is not supported."""
    config = read_json(directory / CONFIG)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{directory}: an adapter of type {config.get('peft_type')!r} is not supported; only LORA is.")
    for name, value in config.items():
        if value and name not in UNDERSTOOD | WITHOUT_EFFECT:
            raise InputError(f"{directory / CONFIG}: {name}={value!r} is not supported.")
    if (start := config.get("init_lora_weights")) not in UNCHANGED_BASE:
        raise InputError(f"{directory / CONFIG}: init_lora_weights={start!r} changes the base model, which is not supported.")
    pattern, kind = config.get("alpha_pattern") or {}, config.get("task_type")
    if not isinstance(pattern, dict) or not isinstance(kind, str | None):
        raise InputError(f"{directory / CONFIG}: alpha_pattern must be an object and task_type a name.")
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha"), **pattern}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise InputError(f"{directory / CONFIG}: {name} is {value!r}, not a positive number.")
        if not re.fullmatch(r"[\w.]+", name):
            raise InputError(f"{directory / CONFIG}: alpha_pattern with the regular expression {name!r} is not supported.")
    if not isinstance(rate := config.get("lora_dropout", 0.0), int | float) or not 0 <= rate < 1:
        raise InputError(f"{directory / CONFIG}: lora_dropout is {rate!r}, not at least 0 and below 1.")
    if not (directory / WEIGHTS).is_file():
        raise InputError(f"{directory}: no {WEIGHTS}; adapters in other files are not read.")
    ending = dict(OF_TOKENS.values()).get(str(kind))
    changes = {} if ending is None else {"architectures": [ending]}  # all that PEFT keeps of the class that it adapted
    if (directory / CHANGES).is_file():
        changes = read_json(directory / CHANGES)
    weights = SafeTensors([directory / WEIGHTS])
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in weights.headers:
        if not name.startswith(PREFIX):
            raise InputError(f"{directory / WEIGHTS}: {name} is not a tensor of an adapter, which begin with {PREFIX}")
        theirs = name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        ending = next((e for e in LOW_RANK if theirs.removesuffix(".weight").endswith(f".{e.removesuffix('.weight')}")), None)
        if ending is not None:
            module = theirs.removesuffix(".weight").removesuffix(f".{ending.removesuffix('.weight')}")
            modules.setdefault(module, {})[LOW_RANK[ending]] = name
        elif ".lora_" in theirs:
            raise InputError(f"{directory / WEIGHTS}: {name} is not supported; only matrices beside dense layers are.")
        else:
            whole[theirs] = name
    if not modules:
        raise InputError(f"{directory / WEIGHTS}: holds no low-rank matrix.")
    return Adapter(directory, config, changes, weights, modules, whole)


class Replaced:
    """A base's weights with an adapter's whole tensors in the place of its own, see `ftjax.pretrained.tensors.Weights`.

    Raises InputError for a tensor that the base has in another shape or that no model of its architecture has.
    """

    def __init__(self, base: Weights, adapter: Adapter, table: NameTable) -> None:
        own = {table.canonical(name): name for name in base.headers}
        heads = {theirs for ours, theirs, _ in table.rules if ours.startswith("classifier.")}
        self._adapter, self._base, self._names = adapter.weights, base, dict(adapter.whole)
        for theirs, name in adapter.whole.items():
            canonical, header = table.canonical(theirs), adapter.weights.headers[name]
            replaced = base.headers[own[canonical]] if canonical in own else header
            if not table.knows(canonical):
                raise adapter.foreign(f"has {theirs}, which this model has not")
            if replaced.shape[1:] != header.shape[1:] or (replaced.shape != header.shape and canonical not in heads):
                raise adapter.foreign(f"{theirs} is {list(header.shape)}, here {list(replaced.shape)}")
        hidden = {own[c] for theirs in adapter.whole if (c := table.canonical(theirs)) in own}
        self.headers: Mapping[str, Header] = {
            **{name: header for name, header in base.headers.items() if name not in hidden},
            **{theirs: adapter.weights.headers[name] for theirs, name in adapter.whole.items()},
        }

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong, see `Weights`."""
        yield from self._adapter.blocks(self._names[name]) if name in self._names else self._base.blocks(name)


def attach(model: Model, params: Params, adapter: Adapter, table: NameTable) -> tuple[Model, Params]:
    """The model with an adapter's low-rank matrices, and their values with those of `params`. InputError where they do not fit.

    Ranks and scales may differ from module to module in the files; here all have the largest rank, filled up with zeros,
    and one scale, which B makes up for.
    """
    dense = {table.theirs(name)[0]: name for name in model.shapes if name.endswith(".kernel")}
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None, float]] = {}
    for theirs, names in adapter.modules.items():
        if not {"a", "b"} <= names.keys() or ("magnitude" in names) != bool(adapter.config.get("use_dora")):
            raise adapter.error(f"{theirs} lacks one of its matrices, or has a magnitude too many")
        whole = table.canonical(f"{theirs}.weight")
        parts = table.parts(whole) or [whole]
        values = {part: read_whole(adapter.weights, name).astype(np.float32) for part, name in names.items()}
        a, b, magnitude = values["a"], values["b"], values.get("magnitude")
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or len(b) % len(parts) or len(a) == 0:
            raise adapter.error(f"{theirs} has matrices of {list(a.shape)} and {list(b.shape)}, which do not go together")
        for number, part in enumerate(parts):
            ours = dense.get(part)
            out = slice(number * len(b) // len(parts), (number + 1) * len(b) // len(parts))
            if ours is None:
                raise adapter.foreign(f"has matrices for {theirs}, which this model has not")
            if (a.shape[1], out.stop - out.start) != (shape := model.shapes[ours].shape):
                sizes = f"{list(a.shape)} and {list(b.shape)}"
                raise adapter.foreign(f"its matrices for {theirs} are {sizes}, which do not fit a kernel of {list(shape)}")
            used = b[out].any(0) if len(parts) > 1 and b.any() else np.full(len(a), True)  # parts have ranks of their own
            gain, name = None if magnitude is None else magnitude.reshape(-1)[out], ours.removesuffix(".kernel")
            if used.any() or (gain is not None and not np.allclose(gain, column_norms(kernel_of(params, name)), rtol=1e-6)):
                found[name] = (a[used].T, b[out][:, used].T, gain, _scale(adapter.config, theirs, len(a)))
    rank = max(a.shape[1] for a, *_ in found.values())
    scale = max(scale for *_, scale in found.values())
    lora = Lora(
        rank, scale * rank, tuple(found), float(adapter.config.get("lora_dropout", 0.0)), bool(adapter.config.get("use_dora"))
    )
    added: Params = {}
    for name, (a, b, magnitude, own) in found.items():
        fill = rank - a.shape[1]
        added[f"{name}.lora_a"] = jnp.asarray(np.pad(a, ((0, 0), (0, fill))))
        added[f"{name}.lora_b"] = jnp.asarray(np.pad(b * (own / scale), ((0, fill), (0, 0))))
        if magnitude is not None:
            added[f"{name}.lora_magnitude"] = jnp.asarray(magnitude)
    model = with_lora(model, lora)
    return model, {name: added.get(name, params.get(name)) for name in model.shapes}


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What a module's product of matrices is multiplied by."""
    own = (alpha for name, alpha in (config.get("alpha_pattern") or {}).items() if f".{module}".endswith(f".{name}"))
    return next(own, config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_adapter(
    model: Model,
    params: Params,
    trained: Collection[str],
    table: NameTable,
    directory: Path,
    *,
    base: str,
    changes: dict[str, Any],
) -> None:
    """Write adapter_config.json, adapter_model.safetensors and config_changes.json.

    trained: names of parameters that differ from the base's; `check_adapter` has seen them. base: the base model, as PEFT
    is to find it. changes: what the base's config.json would have to say otherwise.
    """
    heads, plain = dict(model.heads), build(model.config, **dict(model.heads)).shapes
    named = {ours: table.theirs(ours) for ours in plain}
    tensors = _low_rank(model, params, named, table)
    ranks = {name.removesuffix(".lora_A.weight"): len(a) for name, a in tensors.items() if name.endswith(".lora_A.weight")}
    lora = lora_of(model)
    rank, scale = max(ranks.values()), lora.scale
    own = {module: number for module, number in ranks.items() if number != rank}
    unused = ("masked_lm.", "lm_head.") if heads["num_labels"] and model.cloze is None else ()
    saved = sorted({_module(named[ours][0]) for ours in trained if ours in named and not ours.startswith(unused)})
    for ours, (theirs, transposed) in named.items():
        if _module(theirs) in saved:
            value = params[ours] if ours in params else kernel_of(params, ours.removesuffix(".kernel"))
            tensors[theirs] = np.asarray(value).T if transposed else np.asarray(value)
    fixed = {theirs for _, theirs, _ in table.rules if "*" not in theirs} | {theirs for theirs, _ in named.values()}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": task_type(model),
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": own,
        "alpha_pattern": {module: scale * number for module, number in own.items()},
        "lora_dropout": lora.dropout,
        "use_dora": lora.dora,
        "target_modules": sorted({_suffix(module, ranks, {_module(theirs) for theirs in fixed}) for module in ranks}),
        "modules_to_save": saved or None,
        "fan_in_fan_out": not named[f"{lora.modules[0]}.kernel"][1],
        "bias": "none",
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors({PREFIX + name: array for name, array in tensors.items()}, directory, WEIGHTS)
    for name, value in ((CHANGES, changes), (CONFIG, config)):  # last what makes it an adapter
        partial = directory / f".{name}.partial"
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, directory / name)


def task_type(model: Model) -> str | None:
    """What PEFT calls the task of a model with these heads; None where it has no name for it."""
    heads = dict(model.heads)
    if type(model.config) in SEQ2SEQ:
        return "SEQ_2_SEQ_LM"
    if heads["num_labels"] and model.cloze is None:
        return OF_TOKENS.get(heads["classifier"], ("SEQ_CLS",))[0]
    return "CAUSAL_LM" if heads["causal_lm"] else None


def check_adapter(model: Model, trained: Collection[str]) -> None:
    """InputError where what trains does not go into an adapter."""
    where = "--export-format adapter"
    if model.lora is None:
        raise InputError(f"{where}: needs low-rank matrices; train some with --train-parameters lora:R.")
    for name in trained:
        if name.startswith("masked_lm.") and (model.cloze is not None or not dict(model.heads)["num_labels"]):
            raise InputError(f"{where}: PEFT has no task for masked language modelling; take huggingface.")
        if name.endswith(".embedding"):
            raise InputError(f"{where}: {name} trains, and an adapter holds no embeddings; take huggingface, or freeze them.")
        if name.rpartition(".")[0] in lora_of(model).modules and not name.endswith(LORA):
            raise InputError(f"{where}: {name} trains beside low-rank matrices, which an adapter cannot say; take huggingface.")


def lora_of(model: Model) -> Lora:
    """The low-rank matrices of a model that has some."""
    assert model.lora is not None
    return model.lora


def _low_rank(model: Model, params: Params, named: Mapping[str, tuple[str, bool]], table: NameTable) -> dict[str, np.ndarray]:
    """The tensors of the low-rank matrices by the base's names. Where its files have several kernels in one tensor, that
    one's A is theirs below each other, and its B has theirs as blocks of its own: a product of the sum of the ranks.
    """
    lora = lora_of(model)
    kernels = {theirs: ours.removesuffix(".kernel") for ours, (theirs, _) in named.items() if ours.endswith(".kernel")}
    found: dict[str, np.ndarray] = {}
    for whole in dict.fromkeys(named[f"{name}.kernel"][0].partition("/")[0] for name in lora.modules):
        module, parts = _module(whole), [kernels[part] for part in table.parts(whole) or [whole]]
        adapted = [name for name in parts if name in lora.modules]
        width, rank = params[f"{adapted[0]}.lora_b"].shape[1], lora.rank
        b = np.zeros((len(parts), width, len(adapted), rank), np.float32)
        for number, name in enumerate(adapted):
            b[parts.index(name), :, number] = np.asarray(params[f"{name}.lora_b"]).T
        found[f"{module}.lora_A.weight"] = np.concatenate([np.asarray(params[f"{name}.lora_a"]).T for name in adapted])
        found[f"{module}.lora_B.weight"] = b.reshape(len(parts) * width, len(adapted) * rank)
        if lora.dora:
            magnitudes = [params.get(f"{name}.lora_magnitude", column_norms(kernel_of(params, name))) for name in parts]
            found[f"{module}.lora_magnitude_vector"] = np.concatenate([np.asarray(m) for m in magnitudes])
    return found


def _module(tensor: str) -> str:
    """The base's name of a tensor to that of the module it is in."""
    return tensor.partition("/")[0].rpartition(".")[0]


def _suffix(module: str, targets: Collection[str], everything: Collection[str]) -> str:
    """The shortest end of a module's name that no module has but targets: PEFT finds them by ends of names."""
    words = module.split(".")
    for number in range(1, len(words)):
        end = "." + ".".join(words[-number:])
        if all(other in targets for other in everything if f".{other}".endswith(end)):
            return end[1:]
    return module
