"""The report's first sentence: which method did best, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ftjax.report.formats import duration, finite, integer, memory
from ftjax.report.runs import RunRecord, best, measure, metric_of, names
from ftjax.report.seeds import Setting, best_setting, difference, settings
from ftjax.report.tables import say_score

RECIPE = ("epochs", "learning_rate", "batch_size", "max_length", "precision")
"""Settings that are no part of a method: where they differ, so may the scores for that alone."""


def answer(runs: Sequence[RunRecord]) -> str:
    """Which run had the best score and its cost next to full fine-tuning's; of a single run, its score and cost."""
    if len(found := settings(runs)) < len(runs):
        return _over_seeds(found)
    split, score = measure(runs)
    called, values = names(runs), [run.score(split, score) for run in runs]
    metric = metric_of(runs, score)
    winner, what = best(runs), f"{split} {metric.shown}"
    if winner is None:
        return "No rows with labels were given to score on." if len(runs) > 1 else f"{_title(called[0])}{_cost(runs[0])}."
    value = say_score(score, values[winner])
    if len(runs) == 1:
        return f"{_title(called[0])} reached {value} {what}{_cost(runs[0])}."
    tied = [name for name, other in zip(called, values, strict=True) if other == values[winner]]
    if len(tied) > 1:
        listed = f"{', '.join(tied[:-1])} and {tied[-1]}"
        first = f"{listed[0].upper()}{listed[1:]} share the best {what}, {value}"
    else:
        first = f"{_title(called[winner])} had the best {what}, {value}"
    full = next((number for number, run in enumerate(runs) if run.method == "full"), None)
    if full is None:
        return f"{first}{_cost(runs[winner])}."
    if full != winner:
        above = _above_full(score, values[winner], values[full], higher_is_better=metric.higher_is_better)
        cost = _next_to_full(runs[winner], runs[full])
        subject = f"{_title(called[winner])} took " if len(tied) > 1 else "for "
        said = [part for part in (above, subject + cost if cost else "") if part]
        return f"{first}{'. ' if len(tied) > 1 and said else ': ' if said else ''}{', '.join(said)}."
    first = f"{first}{_cost(runs[full])}."
    second = _second(runs, full)
    if second is None:
        return first
    cost = _next_to_full(runs[second], runs[full])
    return f"{first} {_title(called[second])} came next with {say_score(score, values[second])}{cost and ', for ' + cost}."


def caution(runs: Sequence[RunRecord]) -> str:
    """What else the runs differ in, which of them ended too early, and whether chance alone explains the gap between the best
    two, as far as predictions tell.

    Of settings run with several seeds, the differences to the best one, seed by seed.
    """
    if len(found := settings(runs)) < len(runs):
        best_one = best_setting(found)
        pairs = [difference(best_one, other) for other in found if other is not best_one]
        return " ".join(pair.sentence[:1].upper() + pair.sentence[1:] for pair in pairs if pair)
    unlike = [key.replace("_", " ") for key in RECIPE if any(run.config.get(key) != runs[0].config.get(key) for run in runs)]
    recipe = f"The runs also differ in {' and '.join(unlike)}, see the settings." if unlike else ""
    return " ".join(part for part in (recipe, _by_chance(runs), _unfinished(runs)) if part)


def _unfinished(runs: Sequence[RunRecord]) -> str:
    """Which runs were best at their last evaluation, and there by 2 % or more better than at the one before."""
    rising = []
    for name, run in zip(names(runs), runs, strict=True):
        score, metric = next(iter(run.task.metrics.items()))
        values = [
            value for line in run.metrics if line.get("kind") == "eval" and (value := finite(line.get(score))) is not None
        ]
        if len(values) < 2:
            continue
        sign = 1 if metric.higher_is_better else -1
        before, last = (sign * value for value in (max(values[:-1], key=lambda value: sign * value), values[-1]))
        if last - before >= 0.02 * abs(before) and last > before:
            said = " to ".join(say_score(score, value) for value in (sign * before, sign * last))
            rising.append(f"{name} ({metric.shown} from {said})")
    if not rising:
        return ""
    listed = f"{', '.join(rising[:-1])}{' and ' if rising[1:] else ''}{rising[-1]}"
    whose, was = ("their", "were") if rising[1:] else ("its", "was")
    return f"At {whose} last evaluation {listed} {was} still getting better: more epochs or a higher learning rate may help."


def _by_chance(runs: Sequence[RunRecord]) -> str:
    """Whether chance alone explains the gap between the best two."""
    first = best(runs)
    if first is None or measure(runs)[1] != "accuracy" or (second := _second(runs, first)) is None:
        return ""
    pairs = list(zip(runs[first].predictions, runs[second].predictions, strict=False))
    same_rows = all((p.get("text"), p.get("label")) == (q.get("text"), q.get("label")) for p, q in pairs)
    if not pairs or not same_rows or len(runs[first].predictions) != len(runs[second].predictions):
        return ""
    right = [tuple(p.get("prediction") == p["label"] for p in pair) for pair in pairs if pair[0].get("label") is not None]
    only_first, only_second = right.count((True, False)), right.count((False, True))
    # McNemar: only rows that one run has right and the other wrong tell them apart; by chance they split in halves.
    chance = abs(only_first - only_second) <= 1.96 * math.sqrt(only_first + only_second)
    return (
        f"Of {integer(len(right))} rows, {names(runs)[first]} alone has {integer(only_first)} right and "
        f"{names(runs)[second]} alone {integer(only_second)}: a gap that chance alone "
        f"{'can' if chance else 'can hardly'} explain (McNemar, 95 %). Another seed shifts every score a little."
    )


def _over_seeds(found: Sequence[Setting]) -> str:
    """The best setting's score over its seeds, and that of its test rows where it was chosen by others."""
    best = best_setting(found)
    if best.mean is None:
        return "No rows with labels were given to score on."
    name = f"{best.name[:1].upper()}{best.name[1:]}"
    said = f"{name} {'had the best' if len(found) > 1 else 'reached a'} mean {best.measured}, {best.score}."
    tested = settings(best.runs, split="test")[0] if best.split != "test" else best
    if tested is best or tested.mean is None:
        return said
    return f"{said} Its {tested.measured}, which chose nothing, is {tested.score}."


def _second(runs: Sequence[RunRecord], first: int) -> int | None:
    """The best run besides the first."""
    others = [number for number in range(len(runs)) if number != first]
    split, score = measure(runs)
    scored = [number for number in others if runs[number].score(split, score) is not None]
    found = best([runs[number] for number in scored])
    return None if found is None else scored[found]


def _title(name: str) -> str:
    method, _, directory = name.partition(" (")
    return f"{method[:1].upper()}{method[1:]} fine-tuning{directory and f' ({directory}'}"


def _cost(run: RunRecord) -> str:
    """Such as `, training 3,697,538 of 22,713,218 parameters in 2 min 30 s and 1.25 GB`."""
    trained, frozen = (finite(run.result.get(f"{which}_parameters")) for which in ("trained", "frozen"))
    costs = [
        say(run.result[key])
        for say, key in ((duration, "train_seconds"), (memory, "peak_memory_bytes"))
        if finite(run.result.get(key)) is not None
    ]
    within = f" in {' and '.join(costs)}" if costs else ""
    if trained is None:
        return within
    return f", training {integer(trained)}{f' of {integer(trained + frozen)}' if frozen else ''} parameters{within}"


def _next_to_full(run: RunRecord, full: RunRecord) -> str:
    """Such as `36 % of full's training time and 1.6 times its peak memory`."""
    parts: list[str] = []
    for key, what in (("train_seconds", "training time"), ("peak_memory_bytes", "peak memory")):
        mine, base = finite(run.result.get(key)), finite(full.result.get(key))
        if mine is not None and base:
            share = f"{100 * mine / base:.0f} % of" if mine < 1.05 * base else f"{mine / base:.1f} times"
            owner = "its" if parts else "full's"
            parts.append(f"{share} {owner} {what}")
    return " and ".join(parts)


def _above_full(score: str, value: float | None, full: float | None, *, higher_is_better: bool) -> str:
    if value is None or full is None or value == full:
        return ""
    if score.endswith("accuracy"):
        return f"{100 * (value - full):.1f} points above full"
    return f"{value - full:.4f} above full" if higher_is_better else f"{full - value:.4f} below full"
