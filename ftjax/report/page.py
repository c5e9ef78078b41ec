"""The report page: the answer first, then what it rests on. One file that asks nothing of any other."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ftjax.config import TrainConfig
from ftjax.errors import InputError
from ftjax.report.answer import answer, caution
from ftjax.report.classes import Bin, calibration, calibration_error, class_scores, sure_and_right
from ftjax.report.figures import COLOURS, Series, curve, draw, value_of
from ftjax.report.formats import MISSING, duration, finite, integer, memory, percent
from ftjax.report.markup import STYLE, Html, escape, join, tag
from ftjax.report.runs import RunRecord, best, measure, metric_of, names, read_run
from ftjax.report.seeds import best_setting, seeds_table, settings
from ftjax.report.tables import comparison

MOST_LABELS = 12
"""A confusion matrix with more labels than this cannot be read; the pairs most often confused take its place."""
MOST_CLASSES = 40
"""Of more labels, the table of labels shows those with the lowest F1."""
MOST_MISTAKES = 10
LONGEST_TEXT = 700
MISJUDGED = 0.1
"""From so far on between mean probability and share of right predictions, the report says so in words."""
ALWAYS = ("method", "train_parameters", "epochs", "batch_size", "learning_rate", "max_length", "precision", "seed", "task")
"""Settings that are listed even where they are the defaults."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{main}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


def html(runs: Sequence[RunRecord]) -> str:
    """The whole page. The same runs give the same text, byte for byte. Raises InputError for no runs at all."""
    if not runs:
        raise InputError("No run to report on: give at least one finished run's directory.")
    title = f"Fine-tuning {_short(runs[0].config.get('model'))}"
    top = [tag("h1", title), tag("p", _together(answer(runs)), class_="answer")]
    top += [tag("p", _together(line), class_="quiet") for line in (caution(runs), _setup(runs)) if line]
    over_seeds = _over_seeds(runs)
    if over_seeds:
        runs = [setting.runs[0] for setting in settings(runs)]
    sections = (
        ("Over seeds", over_seeds),
        ("Comparison" if len(runs) > 1 else "Result", _comparison(runs)),
        ("Learning curves", _curves(runs)),
        ("What it cost", _cost(runs)),
        ("What labels bring", _by_labels(runs)),
        ("Confusion", _confusion(runs)),
        ("Label by label", _labels(runs)),
        ("Calibration", _calibration(runs)),
        ("Most confident mistakes", _mistakes(runs)),
        ("Worst predictions", _worst(runs)),
        ("Where time and memory went", join((_time(runs), _memory(runs)))),
        ("Settings", _settings(runs)),
        ("All results", _results(runs)),
        ("Reproduce", _commands(runs)),
    )
    main = [*top, *(tag("section", tag("h2", heading), "\n", body) for heading, body in sections if body)]
    versions = runs[0].config.get("versions")
    version = versions.get("ftjax", "") if isinstance(versions, dict) else ""
    return PAGE.format(
        title=escape(title), style=STYLE, main="\n".join(main), footer=escape(f"Made by ftjax {version}".strip() + ".")
    )


def write_report(run_dirs: Iterable[str | Path], path: str | Path) -> None:
    """Read the runs and write their page, whole or not at all. Raises InputError as `read_run` does."""
    text, path = html([read_run(directory) for directory in run_dirs]), Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _comparison(runs: Sequence[RunRecord]) -> Html:
    header, rows = comparison(runs, more_scores=True)
    winner = best(runs) if len(runs) > 1 else None
    cells = [[join((_swatch(number) if len(runs) > 1 else "", name)), *rest] for number, (name, *rest) in enumerate(rows)]
    return _table("Comparison of the runs", header, cells, strong=winner, class_="wide")


def _over_seeds(runs: Sequence[RunRecord]) -> Html:
    """A row a setting, where some setting was run with several seeds."""
    found = settings(runs)
    if len(found) == len(runs):
        return Html()
    header, rows = seeds_table(found)
    rows = [[_together(cell) for cell in row] for row in rows]
    said = (
        "Mean ± standard deviation over seeds; time and memory are means, and the first run of a sweep compiles for all. "
        "What follows is of each setting's first seed."
    )
    strong = found.index(best_setting(found)) if len(found) > 1 else None
    return join((_table("Settings over seeds", header, rows, text=(2,), strong=strong), tag("p", said, class_="quiet")))


def _curves(runs: Sequence[RunRecord]) -> Html:
    lines = [line for run in runs for line in run.metrics]
    x = "epoch" if all("epoch" in line for line in lines) else "step"
    task, main = runs[0].task, next(iter(runs[0].task.metrics))
    scale, unit = _unit(main)
    panels = (
        ("loss", f"Training loss{_unit('loss')[1]}", "train", (f"{task.name.replace('-', '_')}_loss", "loss"), 1.0),
        ("score", f"Evaluation {task.metrics[main].shown}{unit}", "eval", (main,), scale),
        ("masked", "Language-model loss (nats)", "train", ("masked_lm_loss", "causal_lm_loss"), 1.0),
    )
    figures = []
    for prefix, title, kind, keys, scale in panels:
        series = [
            Series(name, number, *points)
            for number, (name, run) in enumerate(zip(names(runs), runs, strict=True))
            if (points := curve(run, kind, keys, x, scale))[0]
        ]
        if not series:
            continue
        label = f"{title} by {x}. " + " ".join(
            f"{s.name}: from {s.y[0]:.3g} to {s.y[-1]:.3g} at {x} {s.x[-1]:.3g}." for s in series
        )
        picture = draw(series, prefix=prefix, title=title, x_label=x, points=kind == "eval", label=escape(label))
        figures.append(tag("figure", Html(picture), tag("figcaption", _caption(runs, prefix, kind, keys))))
    return tag("div", *figures, class_="figures") if figures else Html()


def _cost(runs: Sequence[RunRecord]) -> Html:
    """Score over training time, a point a run; nothing where fewer than two runs have both."""
    split, score = measure(runs)
    scale, unit = _unit(score)
    series = [
        Series(name, number, [seconds], [scale * value])
        for number, (name, run) in enumerate(zip(names(runs), runs, strict=True))
        if (value := run.score(split, score)) is not None
        if (seconds := finite(run.result.get("train_seconds"))) is not None
    ]
    if len(series) < 2:
        return Html()
    title = f"{'Test' if split == 'test' else 'Evaluation'} {score.replace('_', ' ')}{unit}"
    x_label = "training time (s)"
    label = f"{title} by {x_label}. " + " ".join(f"{s.name}: {s.y[0]:.3g} after {duration(s.x[0])}." for s in series)
    picture = draw(series, prefix="cost", title=title, x_label=x_label, points=True, label=escape(label))
    caption = "Each run's score over its training time, compilation included. Upper left is better."
    if not metric_of(runs, score).higher_is_better:
        caption = caption.replace("Upper", "Lower")
    return tag("div", tag("figure", Html(picture), tag("figcaption", caption)), class_="figures")


def _by_labels(runs: Sequence[RunRecord]) -> Html:
    """Score over labelled rows a class, a line a method; nothing where no method was run with several numbers of them."""
    split, score = measure(runs)
    scale, unit = _unit(score)
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        labels, value = finite(run.config.get("labels_per_class")), run.score(split, score)
        if labels is not None and value is not None:
            found.setdefault(run.method, {}).setdefault(labels, []).append(scale * value)
    series = [
        Series(method, number, sorted(by_labels), [sum(v) / len(v) for _, v in sorted(by_labels.items())])
        for number, (method, by_labels) in enumerate(found.items())
    ]
    if all(len(one.x) < 2 for one in series):
        return Html()
    title, x_label = f"{'Test' if split == 'test' else 'Evaluation'} {metric_of(runs, score).shown}{unit}", "labels a class"
    label = f"{title} by {x_label}. " + " ".join(f"{s.name}: from {s.y[0]:.3g} to {s.y[-1]:.3g}." for s in series)
    picture = draw(series, prefix="labels", title=title, x_label=x_label, points=True, label=escape(label))
    caption = "By how many rows of each class had a label in training; runs with equally many are averaged."
    return tag("div", tag("figure", Html(picture), tag("figcaption", caption)), class_="figures")


def _caption(runs: Sequence[RunRecord], panel: str, kind: str, keys: Sequence[str]) -> str:
    """What a panel shows, and how much of it could not be drawn."""
    lines = [line for run in runs for line in run.metrics if line.get("kind") == kind]
    said = {
        "loss": "Smoothed; the logged values are faint.",
        "score": "Every evaluation during training.",
        "masked": "The self-supervised part of the loss, before its weight; smoothed, the logged values faint.",
    }[panel]
    if panel == "loss" and any("masked_lm_loss" in line or "causal_lm_loss" in line for line in lines):
        said += " For self-supervised, only the part from labels."
    absent = sum(any(key in line for key in keys) and value_of(line, keys) is None for line in lines)
    return said + (f" Left out, as not finite: {absent}." if absent else "")


def _confusion(runs: Sequence[RunRecord]) -> Html:
    figures = []
    for name, run in zip(names(runs), runs, strict=True):
        counts = Counter((str(p["label"]), str(p["prediction"])) for p in _scored(run))
        if not counts:
            continue
        labels = list(map(str, run.config.get("labels") or ()))
        labels += sorted({label for pair in counts for label in pair} - set(labels))
        rows = integer(counts.total())
        if len(labels) <= MOST_LABELS:
            body = _matrix(name, labels, counts)
            said = f"{rows} {_split(run)} rows by label (down) and prediction (across), with shares of the label."
        else:
            wrong = sorted((-count, pair) for pair, count in counts.items() if pair[0] != pair[1])[:MOST_MISTAKES]
            body = _table(
                f"Labels most often confused, {name}",
                ["label", "predicted as", "rows"],
                [[*pair, integer(-count)] for count, pair in wrong],
                text=(1,),
            )
            said = f"The labels most often confused, of {len(labels)} labels and {rows} {_split(run)} rows."
        figures.append(tag("figure", body, tag("figcaption", tag("strong", name), ": ", said)))
    return tag("div", *figures, class_="figures narrow") if figures else Html()


def _matrix(name: str, labels: Sequence[str], counts: Counter[tuple[str, str]]) -> Html:
    rows = []
    for label in labels:
        total = sum(counts[label, other] for other in labels)
        cells = [
            tag(
                "td",
                integer(count),
                tag("small", percent(count / total) if total else ""),
                style=f"--share: {100 * count / total if total else 0:.1f}%",
            )
            for count in (counts[label, other] for other in labels)
        ]
        rows.append(tag("tr", tag("th", label, scope="row"), *cells))
    corner = tag("th", "label ↓ predicted →", scope="col")
    head = tag("tr", corner, *(tag("th", label, scope="col") for label in labels))
    return _scroll(f"Confusion matrix, {name}", tag("table", tag("thead", head), tag("tbody", *rows), class_="matrix"))


def _labels(runs: Sequence[RunRecord]) -> Html:
    """Precision, recall and F1 of every label; of several runs F1 alone, a column each."""
    scored = [(name, run) for name, run in zip(names(runs), runs, strict=True) if _scored(run)]
    if not scored:
        return Html()
    labels = list(dict.fromkeys(str(label) for _, run in scored for label in run.config.get("labels") or ()))
    tables = [class_scores(_scored(run), labels) for _, run in scored]
    order = range(len(tables[0]))
    said = f"Of the {_split(scored[0][1])} rows."
    if len(order) > MOST_CLASSES:
        order = sorted(order, key=lambda number: tables[0][number].f1)[:MOST_CLASSES]
        said += f" The {MOST_CLASSES} labels of {len(tables[0])} with the lowest F1."
    if len(scored) == 1:
        header = ["label", "rows", "precision", "recall", "F1"]
        rows = [[s.label, integer(s.rows), percent(s.precision), percent(s.recall), percent(s.f1)] for s in tables[0]]
    else:
        header = ["label", "rows", *(f"F1, {name}" for name, _ in scored)]
        f1 = [{s.label: s.f1 for s in table} for table in tables]
        rows = [[s.label, integer(s.rows), *(percent(of.get(s.label)) for of in f1)] for s in tables[0]]
    return join((_table("Label by label", header, [rows[number] for number in order]), tag("p", said, class_="quiet")))


def _calibration(runs: Sequence[RunRecord]) -> Html:
    """Share of right predictions over their probability: on the diagonal, probabilities mean what they say."""
    found = [
        (name, number, calibration(_scored(run))) for number, (name, run) in enumerate(zip(names(runs), runs, strict=True))
    ]
    found = [(name, number, bins) for name, number, bins in found if bins]
    if not found:
        return Html()
    series = [
        Series(name, number, [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins])
        for name, number, bins in found
    ]
    errors = ", ".join(f"{name} {percent(calibration_error(bins))}" for name, _, bins in found)
    title, x_label = "Right predictions (%)", "probability of the prediction (%)"
    label = f"{title} by {x_label}. Expected calibration error: {errors}."
    picture = draw(series, prefix="calibration", title=title, x_label=x_label, points=True, diagonal=True, label=escape(label))
    caption = (
        f"Predictions by how sure they were, in tenths. On the grey line a probability of 90 % is right nine times in ten; "
        f"below it the model is too sure of itself. Expected calibration error: {_together(errors)}."
    )
    caption += "".join(_together(f" {misjudged(name, bins)}") for name, _, bins in found if misjudged(name, bins))
    return tag("div", tag("figure", Html(picture), tag("figcaption", caption)), class_="figures")


def misjudged(name: str, bins: Sequence[Bin]) -> str:
    """What it tells that a run's predictions are much less, or much more, sure than right; nothing where they are not."""
    sure, right = sure_and_right(bins)
    if abs(sure - right) < MISJUDGED:
        return ""
    said = f"{name[:1].upper()}{name[1:]} is {percent(sure)} sure and {percent(right)} right"
    if sure < right:
        return f"{said}, as a model is that has trained for few steps: more epochs or a higher learning rate make it surer."
    return f"{said}, as a model is that has seen few rows for many epochs: its probabilities promise too much."


def _mistakes(runs: Sequence[RunRecord]) -> Html:
    """Those of the best run that has predictions: where it is surest and wrong, the label is often the one to check."""
    order = sorted(range(len(runs)), key=lambda number: number != best(runs))
    number = next((number for number in order if _scored(runs[number])), None)
    if number is None:
        return Html()
    wrong = [p for p in _scored(runs[number]) if str(p["label"]) != str(p["prediction"])]
    if not wrong:
        return tag("p", "None: every prediction was right.")
    surest = sorted(wrong, key=lambda p: -_confidence(p))[:MOST_MISTAKES]
    rows = [[tag("span", _cut(p), dir="auto"), p["label"], p["prediction"], percent(_confidence(p) or None)] for p in surest]
    which = "all of them" if len(surest) == len(wrong) else f"the surest {len(surest)} of {integer(len(wrong))}"
    said = f"Mistakes of {names(runs)[number]} on the {_split(runs[number])} rows: {which}. Some may be wrong labels."
    header = ["text", "label", "prediction", "probability"]
    return join((tag("p", said, class_="quiet"), _table("Most confident mistakes", header, rows, text=(1, 2), wrap=True)))


def _worst(runs: Sequence[RunRecord]) -> Html:
    """Of tasks without classes: those rows of the best run whose predictions are furthest from what was given."""
    order = sorted(range(len(runs)), key=lambda number: number != best(runs))
    number = next((number for number in order if runs[number].predictions and not runs[number].task.row_classes), None)
    if number is None:
        return Html()
    task = runs[number].task
    known = [p for p in runs[number].predictions if p.get("label") is not None and p.get("prediction") is not None]
    wrong = [(task.wrong(p["label"], p["prediction"]), p) for p in known]
    worst = sorted((pair for pair in wrong if pair[0] > 0), key=lambda pair: -pair[0])[:MOST_MISTAKES]
    if not worst:
        return Html()
    rows = [[tag("span", _cut(p), dir="auto"), task.say(p["label"]), task.say(p["prediction"])] for _, p in worst]
    said = (
        f"The {len(worst)} of {integer(len(known))} {_split(runs[number])} rows of {names(runs)[number]} that are furthest off."
    )
    return join(
        (
            tag("p", said, class_="quiet"),
            _table("Worst predictions", ["text", "label", "prediction"], rows, text=(1, 2), wrap=True),
        )
    )


def _time(runs: Sequence[RunRecord]) -> Html:
    spent = [
        {key: s for key, v in seconds.items() if (s := finite(v)) is not None}
        if isinstance(seconds := run.result.get("seconds"), dict)
        else {}
        for run in runs
    ]
    phases = list(dict.fromkeys(key for seconds in spent for key in seconds))
    if not phases:
        return Html()

    def cell(seconds: dict[str, float], phase: str) -> Html:
        share = seconds.get(phase, 0.0) / (sum(seconds.values()) or 1.0)
        bar = tag("span", tag("span", style=f"--share: {100 * share:.1f}%"), class_="bar", aria_hidden="true")
        return join((duration(seconds.get(phase)), bar, tag("small", percent(share), class_="quiet")))

    rows: list[list[Any]] = [[phase.replace("_", " "), *(cell(seconds, phase) for seconds in spent)] for phase in phases]
    rows.append(["total", *(duration(sum(seconds.values()) if seconds else None) for seconds in spent)])
    header = ["phase", *(names(runs) if len(runs) > 1 else ["time"])]
    return _table("Where time went", header, rows, strong=len(rows) - 1)


def _memory(runs: Sequence[RunRecord]) -> Html:
    """What the numbers of parameters take, and the rest of the peak."""

    def parts(run: RunRecord) -> dict[str, float] | None:
        trained, frozen = (finite(run.result.get(f"{which}_parameters")) for which in ("trained", "frozen"))
        peak = finite(run.result.get("peak_memory_bytes"))
        if trained is None or frozen is None or peak is None:
            return None
        width = 2 if run.config.get("precision") == "bfloat16" else 4
        known = {
            "parameters that train": 4 * trained,
            "frozen parameters": width * frozen,
            "gradients": 4 * trained,
            "AdamW's moments": 8 * trained,
        }
        return known | {"all else: activations, data, programs": peak - sum(known.values()), "peak": peak}

    found = [parts(run) for run in runs]
    if not any(found):
        return Html()
    what = next(list(one) for one in found if one)
    rows = [[name, *(memory(one[name]) if one and one[name] >= 0 else MISSING for one in found)] for name in what]
    header = ["memory", *(names(runs) if len(runs) > 1 else ["bytes"])]
    said = "The peak was measured; the parts are counted from the parameters, and what is left is all else."
    return join((_table("Where memory went", header, rows, strong=len(rows) - 1), tag("p", said, class_="quiet")))


def _settings(runs: Sequence[RunRecord]) -> Html:
    """Every key of config.json but the command, which has a section of its own, and digests. What is null was not set.

    Settings left at their defaults, many of which play no part in a run, are folded away.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.config if key not in ("command", "files")))
    values = {key: [_say(run.config.get(key)) for run in runs] for key in keys}
    shared = [[key, said[0]] for key, said in values.items() if len(set(said)) == 1 and said[0]]
    differing = [[key, *(text or MISSING for text in said)] for key, said in values.items() if len(set(said)) > 1]
    parts: list[str] = []
    if differing:
        parts += [
            tag("h3", "Different between the runs"),
            _table("Settings that differ", ["setting", *names(runs)], differing, text=range(1, len(runs) + 1)),
        ]
        parts.append(tag("h3", "The same in every run") if shared else "")
    usual = json.loads(json.dumps(TrainConfig(model="", output=Path()).to_dict()))
    plain = [row for row in shared if row[0] not in ALWAYS and row[0] in usual and _say(usual[row[0]]) == row[1]]
    if chosen := [row for row in shared if row not in plain]:
        parts.append(_table("Settings", ["setting", "value"], chosen, text=(1,)))
    if plain:
        summary = f"{len(plain)} settings left at their defaults, whether or not they play a part"
        table = _table("Settings left at their defaults", ["setting", "value"], plain, text=(1,))
        parts.append(tag("details", tag("summary", summary), table))
    return join(parts)


def _results(runs: Sequence[RunRecord]) -> Html:
    """Every number of result.json under its own name, but the times of the section above."""
    flat = [_flat({key: run.result[key] for key in run.result if key not in ("seconds", "method")}) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [[key, *(_say(values.get(key)) or MISSING for values in flat)] for key in keys]
    return _table("All results", ["result", *(names(runs) if len(runs) > 1 else ["value"])], rows) if rows else Html()


def _commands(runs: Sequence[RunRecord]) -> Html:
    commands = dict.fromkeys(str(run.config["command"]) for run in runs if run.config.get("command"))
    return join(tag("pre", tag("code", command)) for command in commands)


def _setup(runs: Sequence[RunRecord]) -> str:
    """One line on what all runs have in common."""
    parts = {
        "train_file": "trained on {}",
        "dataset": "data set {}",
        "epochs": "{} epochs",
        "batch_size": "batch size {}",
        "precision": "{}",
        "seed": "seed {}",
        "device": "{}",
    }
    shared = {key: said.pop() for key in parts if len(said := {_say(run.config.get(key)) for run in runs}) == 1}
    line = " · ".join(form.format(shared[key]) for key, form in parts.items() if shared.get(key))
    return line[:1].upper() + line[1:]


def _table(
    label: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    text: Iterable[int] = (),
    strong: int | None = None,
    wrap: bool = False,
    class_: str | None = None,
) -> Html:
    """A table in a container that scrolls by itself. Columns after the first hold numbers unless named in `text`.

    wrap: the first column is running text, not the row's name. strong: the number of the row to stress.
    """
    kinds = ["text" if wrap else None, *("setting" if n in set(text) else "number" for n in range(1, len(header)))]
    head = tag("tr", *(tag("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True)))
    body = []
    for number, (first, *rest) in enumerate(rows):
        opening = tag("td", first, class_="text") if wrap else tag("th", first, scope="row")
        cells = (tag("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True))
        body.append(tag("tr", opening, *cells, class_="best" if number == strong else None))
    return _scroll(label, tag("table", tag("thead", head), tag("tbody", join(body)), class_=class_))


def _scroll(label: str, content: Html) -> Html:
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def _swatch(number: int) -> Html:
    return tag("span", class_="swatch", style=f"background: var(--series-{number % COLOURS})", aria_hidden="true")


def _scored(run: RunRecord) -> list[dict[str, Any]]:
    """The predictions of a class that have a label to be right or wrong about."""
    if not run.task.row_classes:
        return []
    return [p for p in run.predictions if p.get("label") is not None and p.get("prediction") is not None]


def _unit(score: str) -> tuple[float, str]:
    """What a score is multiplied by in a figure, and the unit that gives it."""
    return (100.0, " (%)") if score.endswith("accuracy") else (1.0, " (nats)" if score == "loss" else "")


def _confidence(prediction: dict[str, Any]) -> float:
    scores = prediction.get("scores")
    return (finite(scores.get(str(prediction["prediction"]))) if isinstance(scores, dict) else None) or 0.0


def _split(run: RunRecord) -> str:
    return "test" if "test" in run.result else "evaluation"


def _together(sentence: str) -> str:
    """The sentence with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|(?:ms|s|min|h|[kMGT]?B)\b)", "\N{NO-BREAK SPACE}", sentence)


def _cut(prediction: dict[str, Any]) -> str:
    text = str(prediction.get("text", ""))
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def _say(value: Any) -> str:
    """A JSON value in words; nothing for null."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() if abs(value) >= 10_000:
            return integer(value)
        case float():
            return f"{value:.6g}" if finite(value) is not None else "not finite"
        case list():
            return ", ".join(map(_say, value))
        case dict():
            return ", ".join(f"{key} {_say(item)}" for key, item in value.items())
        case _:
            return str(value)


def _short(model: Any) -> str:
    """A hub id as it is; of a path the last part."""
    name = str(model or "a language model")
    return name if name.count("/") == 1 and name[0] not in "./~" else name.rstrip("/").rpartition("/")[2] or name
