"""Which parameters train: a spec such as `last:2,head` -> a label for every parameter -> two disjoint dictionaries.

Labels are the interface; the split is what makes freezing pay. Only the trainable dictionary is differentiated,
reduced over devices, clipped and given optimizer state, so XLA never builds the backward pass of the rest. (Masking
updates alone does not save it: a clip or a norm metric over all gradients brings it back.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from ftjax.errors import InputError, did_you_mean

Label = Literal["trained", "frozen"]
Labels = dict[str, Label]
T = TypeVar("T")

HEADS = ("pooler.", "classifier.", "masked_lm.")
PRESETS: dict[str, str] = {
    "all": r".*",
    "head": r"(pooler|classifier|masked_lm)\..*",
    "bias": r".*\.bias",
    "layernorm": r".*(^|[._])norm\.(scale|bias)",
    "embeddings": r"encoder\.embeddings\..*",
}
"""Specs that are one regular expression over parameter names. Besides these: `last:K` (the last K layers) and
`regex:PATTERN` (full match)."""


def pattern(spec: str, layers: int) -> str:
    """One spec (no commas) to the regular expression of the names it trains, for a model of `layers` layers."""
    kind, _, argument = spec.partition(":")
    if spec in PRESETS:
        return PRESETS[spec]
    if kind == "last":
        if not argument.isdecimal() or not 1 <= int(argument) <= layers:
            raise InputError(f"--train-parameters {spec}: K in last:K must be a number from 1 to {layers}, the model's layers.")
        numbers = "|".join(map(str, range(layers - int(argument), layers)))
        return rf"encoder\.layers\.({numbers})\..*"
    if kind == "regex":
        try:
            re.compile(argument)
        except re.error as error:
            raise InputError(f"--train-parameters {spec}: not a regular expression ({error}).") from None
        return argument
    known = [*PRESETS, "last:K", "regex:PATTERN"]
    raise InputError(f"--train-parameters {spec}: unknown; known are {', '.join(known)}.{did_you_mean(spec, known)}")


def split_spec(spec: str) -> list[str]:
    """`last:2,head` to its parts. A `regex:` part may itself hold commas and therefore runs to the end."""
    before, marker, expression = spec.partition("regex:")
    parts = [part.strip() for part in before.split(",") if part.strip()]
    return parts + ([marker + expression] if marker else [])


def label(names: Iterable[str], spec: str, *, layers: int, always: Iterable[str] = ()) -> Labels:
    """A label for every parameter name.

    spec: comma-separated parts, see `PRESETS`; a parameter trains if any part matches its whole name.
    layers: how many layers the model has. always: names that train whatever the spec says (a new head).
    Raises InputError for a part that is unknown or matches no parameter, with near misses.
    """
    names, always = list(names), set(always)
    parts = split_spec(spec)
    if not parts:
        raise InputError("--train-parameters is empty; name at least one part, such as head.")
    trained = set(always)
    for part in parts:
        found = {name for name in names if re.fullmatch(pattern(part, layers), name)}
        if not found:
            near = did_you_mean(part.partition(":")[2] or part, names)
            raise InputError(f"--train-parameters {part}: matches no parameter.{near or f' Names look like {names[0]}.'}")
        trained |= found
    return {name: "trained" if name in trained else "frozen" for name in names}


def split(params: Mapping[str, T], labels: Labels) -> tuple[dict[str, T], dict[str, T]]:
    """(trainable, frozen): the parameters by label. `{**frozen, **trainable}` joins them again."""
    chosen: tuple[dict[str, T], dict[str, T]] = {}, {}
    for name, value in params.items():
        chosen[labels[name] == "frozen"][name] = value
    return chosen


def count(params: Mapping[str, Any]) -> int:
    """How many numbers the arrays (or shapes) hold."""
    return sum(value.size for value in params.values())
