"""Which parameters train, and how: a spec such as `last:2,head` -> a treatment of every parameter -> two disjoint dictionaries.

A spec is read as a table of rules of which the first that matches a name decides; a file may give that table itself.
The split is what makes freezing pay. Only the trainable dictionary is differentiated, reduced over devices, clipped and
given optimizer state, so XLA never builds the backward pass of the rest. (Masking updates alone does not save it: a clip
or a norm metric over all gradients brings it back.)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from ftjax.errors import InputError, did_you_mean
from ftjax.models.nf4 import CODES, ENDINGS, SCALES

Label = Literal["trained", "frozen"]
Labels = dict[str, Label]
T = TypeVar("T")

PRESETS: dict[str, str] = {
    "all": r".*",
    "head": r"(pooler|classifier|masked_lm|lm_head)\..*",
    "bias": r".*\.bias",
    "layernorm": r".*(^|[._])norm\.(scale|bias)",
    "embeddings": r"(encoder|decoder)\.embeddings\..*",
    "attention": r"(encoder|decoder)\.layers\.\d+\.attention\..*",
    "mlp": r"(encoder|decoder)\.layers\.\d+\.mlp\..*",
}
"""Specs that are one regular expression over parameter names."""
KNOWN = (*PRESETS, "every-other", "last:K", "top:FRACTION", "lora:R", "regex:PATTERN", "rules:FILE")
"""All specs: besides the presets every second layer counted from the last, the last K layers, the last FRACTION of the
layers, low-rank matrices beside frozen kernels, names that match a pattern, and a file with a table of rules."""


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What happens to a parameter: whether it trains, and if so with which multiple of the learning rate and weight decay.

    weight_decay: None is the run's own (none on biases and norms). from_step: the first step in which it trains.
    """

    trained: bool
    learning_rate: float = 1.0
    weight_decay: float | None = None
    from_step: int = 0


Treatments = dict[str, Treatment]
FROZEN = Treatment(trained=False)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The first rule whose pattern matches a whole name decides. where: what a message calls it; spelled: as given."""

    spelled: str
    treatment: Treatment
    where: str


def pattern(spec: str, layers: int, where: str = "") -> str:
    """One spec (no commas) to the regular expression of the names it means, for a model of `layers` layers."""
    where = where or f"--train-parameters {spec}"
    kind, colon, argument = spec.partition(":")
    if spec in PRESETS:
        return PRESETS[spec]
    if spec == "every-other":
        return _layers(range(layers - 1, -1, -2))
    if kind == "last" and colon:
        if not argument.isdecimal() or not 1 <= int(argument) <= layers:
            raise InputError(f"{where}: K in last:K must be a number from 1 to {layers}, the model's layers.")
        return _layers(range(layers - int(argument), layers))
    if kind == "top" and colon:
        fraction = _number(argument)
        if fraction is None or not 0 < fraction <= 1:
            raise InputError(f"{where}: FRACTION in top:FRACTION must be above 0 and at most 1, such as top:0.25.")
        return _layers(range(layers - math.ceil(fraction * layers), layers))
    if kind == "lora" and colon:
        lora_rank(spec, where)
        return r".*\.lora_(a|b|magnitude)"
    if kind == "regex" and colon:
        try:
            re.compile(argument)
        except re.error as error:
            raise InputError(f"{where}: not a regular expression ({error}).") from None
        return argument
    raise InputError(f"{where}: unknown; known are {', '.join(KNOWN)}.{did_you_mean(spec, KNOWN)}")


def lora_rank(spec: str, where: str = "") -> int:
    """R of lora:R."""
    argument = spec.partition(":")[2]
    if not argument.isdecimal() or not 1 <= int(argument) <= 4096:
        raise InputError(f"{where or f'--train-parameters {spec}'}: R in lora:R must be a whole number of at least 1.")
    return int(argument)


def _layers(numbers: Iterable[int]) -> str:
    return rf"(encoder|decoder)\.layers\.({'|'.join(map(str, sorted(numbers)))})\..*"


def _number(text: str) -> float | None:
    try:
        return float(text) if math.isfinite(float(text)) else None
    except ValueError:
        return None


def split_spec(spec: str) -> list[str]:
    """`last:2,head` to its parts. A `regex:` part may itself hold commas and therefore runs to the end."""
    before, marker, expression = spec.partition("regex:")
    parts = [part.strip() for part in before.split(",") if part.strip()]
    return parts + ([marker + expression] if marker else [])


def read_rules(path: Path) -> list[Rule]:
    """A table of rules, one a line: what is meant, then `frozen`, or `trained` with `learning-rate=X` (a multiple of the
    run's) and `weight-decay=X` as wanted. What is meant is a spec such as last:2, or a regular expression over names.

        # the first rule that matches a parameter's name decides
        head                          trained
        encoder\\.layers\\.[45]\\..*     trained  learning-rate=0.5  weight-decay=0
        .*                            frozen

    Raises InputError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"--train-parameters rules:{path}: cannot be read ({reason}).") from None
    rules = []
    for number, line in enumerate(lines, 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        where = f"{path}, line {number}"
        meant, *actions = words
        values: dict[str, Any] = {}
        for action in actions[1:]:
            name, _, text = action.partition("=")
            value = _number(text)
            names = ("learning-rate", "weight-decay")
            if name not in names:
                raise InputError(f"{where}: {action!r} is not learning-rate=X or weight-decay=X.{did_you_mean(name, names)}")
            if value is None or value < 0 or (name == "learning-rate" and value == 0):
                raise InputError(f"{where}: {action!r}: X must be a positive number.")
            values[name.replace("-", "_")] = value
        if not actions or actions[0] not in ("trained", "frozen") or (actions[0] == "frozen" and values):
            raise InputError(
                f"{where}: after {meant!r} must stand frozen, or trained, with learning-rate=X and weight-decay=X as wanted."
            )
        rules.append(Rule(meant, Treatment(actions[0] == "trained", **values), where))
    if not rules:
        raise InputError(f"--train-parameters rules:{path}: holds no rule.")
    return rules


def read_spec(spec: str) -> tuple[list[Rule], bool]:
    """(rules, whether they must cover every parameter: those of a file must, a comma-separated spec freezes the rest)."""
    parts = split_spec(spec)
    if not parts:
        raise InputError("--train-parameters is empty; name at least one part, such as head.")
    if len(parts) == 1 and parts[0].startswith("rules:"):
        return read_rules(Path(parts[0].removeprefix("rules:"))), True
    if any(part.startswith("rules:") for part in parts):
        raise InputError(f"--train-parameters {spec}: rules:FILE stands alone; put the rest into the file.")
    return [Rule(part, Treatment(trained=True), f"--train-parameters {part}") for part in parts], False


def lora_part(spec: str) -> int | None:
    """The rank that a spec or its rules file asks low-rank matrices of, or None. InputError for two different ones."""
    rules = read_spec(spec)[0]
    ranks = {lora_rank(r.spelled, r.where) for r in rules if r.spelled.startswith("lora:") and r.treatment.trained}
    if len(ranks) > 1:
        raise InputError(f"--train-parameters {spec}: lora with two ranks; give one.")
    return ranks.pop() if ranks else None


def without_lora(spec: str, names: Iterable[str], *, layers: int) -> set[str]:
    """What a spec trains besides its low-rank matrices: names of parameters that train themselves."""
    rules, _ = read_spec(spec)
    rest = [rule for rule in rules if not rule.spelled.startswith("lora:")]
    trained = set()
    for name in names:
        first = next((r for r in rest if re.fullmatch(_expression(r, layers), name)), None)
        if first is not None and first.treatment.trained:
            trained.add(name)
    return trained


def _expression(rule: Rule, layers: int) -> str:
    kind, _, _ = rule.spelled.partition(":")
    in_file = not rule.where.startswith("--")
    if in_file and rule.spelled not in KNOWN and kind not in ("last", "top", "lora", "regex"):
        return pattern(f"regex:{rule.spelled}", layers, rule.where)
    return pattern(rule.spelled, layers, rule.where)


def treat(names: Iterable[str], spec: str, *, layers: int, always: Iterable[str] = (), layer_decay: float = 1.0) -> Treatments:
    """A treatment of every parameter name.

    spec: comma-separated parts (see `KNOWN`), or rules:FILE (see `read_rules`); the first match decides.
    layers: how many layers the model has. always: names that train whatever the spec says (a new head).
    layer_decay: multiplies the learning rate once for every layer between a parameter and the head (ELECTRA, Clark et
        al., 2020; BEiT, Bao et al., 2021): heads 1, the last layer layer_decay, the embeddings layer_decay^(layers + 1).
    Kernels in 4 bits (see `ftjax.models.nf4`) are frozen whatever the spec says. Raises InputError for a rule that is
    unknown or matches no parameter, with near misses, and for a parameter that a table of rules leaves out.
    """
    names, always = list(names), set(always)
    in_4bit = {name: FROZEN for name in names if name.endswith(ENDINGS)}
    names = [name for name in names if name not in in_4bit]
    rules, must_cover = read_spec(spec)
    found: Treatments = {}
    for rule in rules:
        expression = _expression(rule, layers)
        matched = [name for name in names if re.fullmatch(expression, name)]
        if not matched:
            near = did_you_mean(rule.spelled.partition(":")[2] or rule.spelled, [*names, *KNOWN])
            if rule.spelled in PRESETS:  # spelled right, but not in this model
                near = " Its head is its word embeddings, which embeddings trains." if rule.spelled == "head" else ""
            spelled = "" if rule.where.startswith("--") else f" {rule.spelled}"
            raise InputError(f"{rule.where}{spelled}: matches no parameter.{near or f' Names look like {names[0]}.'}")
        for name in matched:
            found.setdefault(name, rule.treatment)
    if must_cover and (left := [name for name in names if name not in found]):
        more = f" and {len(left) - 1} more parameters" if left[1:] else ""
        raise InputError(
            f"--train-parameters {spec}: no rule covers {left[0]}{more}; end the file with, say, the line: .* frozen"
        )

    def decayed(name: str, treatment: Treatment) -> Treatment:
        rate = treatment.learning_rate * layer_decay ** _depth(name, layers)
        return dataclasses.replace(treatment, learning_rate=rate) if treatment.trained else treatment

    for name in always:
        if not found.get(name, FROZEN).trained:
            found[name] = Treatment(trained=True)
    return {name: decayed(name, found.get(name, FROZEN)) for name in names} | in_4bit


def _depth(name: str, layers: int) -> int:
    """How many layers lie between a parameter and the head."""
    if layer := re.match(r"(?:encoder|decoder)\.layers\.(\d+)\.", name):
        return layers - int(layer[1])
    return layers + 1 if re.match(r"(?:encoder|decoder)\.embeddings\.", name) else 0


def label(names: Iterable[str], spec: str, *, layers: int, always: Iterable[str] = ()) -> Labels:
    """The optax label of every parameter name, "trained" or "frozen": `treat` for those who need no more than that."""
    return labels_of(treat(names, spec, layers=layers, always=always))


def labels_of(treatments: Treatments) -> Labels:
    """Treatments to labels."""
    return {name: "trained" if treatment.trained else "frozen" for name, treatment in treatments.items()}


def split(params: Mapping[str, T], labels: Labels) -> tuple[dict[str, T], dict[str, T]]:
    """(trainable, frozen): the parameters by label. `{**frozen, **trainable}` joins them again."""
    chosen: tuple[dict[str, T], dict[str, T]] = {}, {}
    for name, value in params.items():
        chosen[labels[name] == "frozen"][name] = value
    return chosen


def count(params: Mapping[str, Any]) -> int:
    """How many parameters the arrays (or shapes) hold: of a kernel in 4 bits its numbers, two a byte, and not its scales."""
    sizes = {name: value.size * (2 if name.endswith(CODES) else 1) for name, value in params.items()}
    return sum(size for name, size in sizes.items() if not name.endswith(SCALES))
