"""The report: what it reads, what it says, and that a hostile text or a missing part does no harm."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftjax.config import TrainConfig
from ftjax.errors import InputError
from ftjax.report import RunRecord, formats, html, read_run, table, write_report
from ftjax.report.answer import answer, caution
from ftjax.report.classes import Bin, calibration, calibration_error, class_scores
from ftjax.report.figures import MOST_POINTS, curve, draw, smoothed, thinned
from ftjax.report.page import misjudged
from ftjax.report.runs import best, measure, names
from ftjax.report.seeds import best_setting, difference, settings

pytestmark = pytest.mark.filterwarnings("error")

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


def make_run(directory: Path, method: str = "full", *, accuracy: float = 0.8, labels: tuple[str, ...] = ("fresh", "rotten")):
    """Write a finished run as `ftjax train` does."""
    directory.mkdir(parents=True)
    choose = random.Random(method)
    config: dict[str, Any] = {
        "model": "organisation/small-bert", "method": method, "train_file": "train.csv", "epochs": 2, "batch_size": 32,
        "learning_rate": 5e-5, "train_parameters": "last:2,head" if method == "partial" else None, "seed": 0,
        "labels": list(labels), "versions": {"ftjax": "0.1.0", "jax": "0.10.2"}, "device": "2 x cpu",
        "command": "ftjax train --model organisation/small-bert --train-file 'my <file>.csv'",
    }  # fmt: skip
    metrics: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "epoch": step / 40, "loss": 0.7 - step / 200 + choose.gauss(0, 0.01)}
        | ({"classification_loss": 0.6 - step / 200, "masked_lm_loss": 3.0} if method == "self-supervised" else {})
        for step in range(10, 81, 10)
    ]
    metrics += [{"kind": "eval", "step": 40 * e, "epoch": float(e), "loss": 0.5, "accuracy": accuracy} for e in (1, 2)]
    scores = {"loss": 0.45, "accuracy": accuracy, "macro_f1": 0.79, "matthews": 0.6}
    scale = {"full": 1.0, "partial": 0.5, "self-supervised": 2.0}[method]
    result = {
        "method": method, "trained_parameters": 22_713_218, "frozen_parameters": 0, "best_step": 80,
        "step_seconds": 1.39 * scale, "train_seconds": 321.0 * scale, "examples_per_second": 48.0,
        "peak_memory_bytes": round(1.25e9 * scale), "eval": scores, "test": scores,
        "seconds": {"load": 1.0, "compile": 20.0, "data_wait": 0.01, "step": 300.0 * scale, "eval": 9.0, "save": 1.0},
    }  # fmt: skip
    predictions = []
    for number in range(40):
        label, right = labels[number % 2], number < 40 * accuracy
        prediction = label if right else labels[1 - number % 2]
        sure = 0.5 + number / 100
        scores_of = {prediction: sure, labels[1 - labels.index(prediction)]: 1 - sure}
        predictions.append({"text": f"text {number}", "label": label, "prediction": prediction, "scores": scores_of})
    write(directory, config=config, result=result, metrics=metrics, predictions=predictions)
    return directory


def write(directory: Path, **parts: Any) -> None:
    for name, value in parts.items():
        lines = isinstance(value, list)
        text = "".join(json.dumps(line) + "\n" for line in value) if lines else json.dumps(value)
        (directory / f"{name}.{'jsonl' if lines else 'json'}").write_text(text, encoding="utf-8")


def change(run: RunRecord, **parts: dict[str, Any]) -> RunRecord:
    """The run with some keys of its config or result replaced."""
    return dataclasses.replace(run, **{name: getattr(run, name) | keys for name, keys in parts.items()})


class Page(HTMLParser):
    """Collects elements and text, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return read_run(make_run(tmp_path / "runs" / "full"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    root = tmp_path_factory.mktemp("three")
    accuracies = {"full": 0.8, "partial": 0.825, "self-supervised": 0.7}
    return [read_run(make_run(root / method, method, accuracy=accuracy)) for method, accuracy in accuracies.items()]


@pytest.fixture(scope="module")
def text(runs: list[RunRecord]) -> str:
    return html(runs)


# Reading


def test_reads_what_a_run_has_left(run: RunRecord):
    assert run.method == "full"
    assert len(run.metrics) == 10 and len(run.predictions) == 40
    assert run.score("test", "accuracy") == 0.8
    assert run.score("test", "unheard_of") is None


@pytest.mark.parametrize("missing", ["config.json", "result.json"])
def test_not_a_finished_run(run: RunRecord, missing: str):
    (run.directory / missing).unlink()
    with pytest.raises(InputError, match=re.escape(str(run.directory)) + ".*" + missing):
        read_run(run.directory)


def test_no_such_directory(tmp_path: Path):
    with pytest.raises(InputError, match="no such directory"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name, text", [
    ("config.json", "{"), ("result.json", "[1]"), ("config.json", b"\xff\xfe"),
    ("metrics.jsonl", "{]\n{}\n"), ("metrics.jsonl", "[]\n"), ("predictions.jsonl", b"\xff\n"),
])  # fmt: skip
def test_damaged_files_are_named(run: RunRecord, name: str, text: str | bytes):
    (run.directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=re.escape(name)):
        read_run(run.directory)


def test_last_line_cut_short_by_a_kill_is_dropped(run: RunRecord):
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert read_run(run.directory).metrics == run.metrics


def test_texts_with_unicode_line_separators_stay_one_line(run: RunRecord):
    line = {"text": "a\u2028b\x85c", "label": "fresh", "prediction": "fresh", "scores": {}}
    (run.directory / "predictions.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_run(run.directory).predictions == [line]


# Numbers


@pytest.mark.parametrize(
    "say, value, said",
    [
        (formats.integer, 22713218, "22,713,218"),
        (formats.integer, None, formats.MISSING),
        (formats.integer, True, formats.MISSING),
        (formats.duration, 1.39, "1.39 s"),
        (formats.duration, 0.2349, "235 ms"),
        (formats.duration, 0.00123, "1.23 ms"),
        (formats.duration, 321, "5 min 21 s"),
        (formats.duration, 0.99996, "1.00 s"),
        (formats.duration, 59.97, "1 min 0 s"),
        (formats.duration, 3599.7, "1 h 0 min"),
        (formats.duration, 7500, "2 h 5 min"),
        (formats.duration, 0, "0 ms"),
        (formats.duration, math.nan, formats.MISSING),
        (formats.duration, "soon", formats.MISSING),
        (formats.duration, 9.996, "10.0 s"),
        (formats.memory, 1.25e9, "1.25 GB"),
        (formats.memory, 512, "512 B"),
        (formats.memory, 999_700, "1.00 MB"),
        (formats.memory, 16e12, "16.0 TB"),
        (formats.memory, None, formats.MISSING),
        (formats.percent, 0.8124, "81.2 %"),
        (formats.percent, math.inf, formats.MISSING),
        (formats.decimal, 0.62351, "0.6235"),
    ],
)
def test_numbers_are_said_for_people(say: Any, value: Any, said: str):
    assert say(value) == said


# The terminal's table


def test_table_has_the_columns_and_fits_a_terminal(runs: list[RunRecord]):
    drawn = table(runs)
    assert [str(column.header).replace("\n", " ") for column in drawn.columns] == [
        "method", "test accuracy", "trained parameters", "step time", "training time", "peak memory",
    ]  # fmt: skip
    drawn_text = io.StringIO()
    Console(width=80, file=drawn_text).print(drawn)
    for cell in ("self-supervised", "82.5 %", "22,713,218", "1.39 s", "5 min 21 s", "1.25 GB"):
        assert cell in drawn_text.getvalue()


def test_table_says_eval_where_there_is_no_test(runs: list[RunRecord]):
    without = dataclasses.replace(runs[1], result={k: v for k, v in runs[1].result.items() if k != "test"})
    assert str(table([runs[0], without]).columns[1].header) == "eval\naccuracy"


def test_table_reads_no_markup(run: RunRecord):
    drawn = table([change(run, config={"method": "[red]x[/nothing]"})])
    assert [str(cell) for cell in drawn.columns[0].cells] == ["[red]x[/nothing]"]


# The answer


def test_answer_weighs_the_best_against_full(runs: list[RunRecord]):
    assert answer(runs) == (
        "Partial fine-tuning had the best test accuracy, 82.5 %: 2.5 points above full, "
        "for 50 % of full's training time and 50 % of its peak memory."
    )


def test_answer_where_full_is_best(runs: list[RunRecord]):
    assert answer([runs[0], runs[2]]) == (
        "Full fine-tuning had the best test accuracy, 80.0 %, training 22,713,218 parameters in 5 min 21 s "
        "and 1.25 GB. Self-supervised fine-tuning came next with 70.0 %, "
        "for 2.0 times full's training time and 2.0 times its peak memory."
    )


def test_answer_without_full_for_one_run_and_for_none_with_scores(runs: list[RunRecord]):
    assert answer(runs[1:]).endswith("82.5 %, training 22,713,218 parameters in 2 min 40 s and 625 MB.")
    assert answer(runs[:1]).startswith("Full fine-tuning reached 80.0 % test accuracy, training")
    bare = [dataclasses.replace(run, result={}) for run in runs]
    assert answer(bare) == "No rows with labels were given to score on."
    assert answer(bare[:1]) == "Full fine-tuning."
    assert best(bare) is None


def test_answer_where_runs_tie(runs: list[RunRecord]):
    tied = [runs[0], change(runs[1], result={"test": {"accuracy": 0.8}})]
    assert answer(tied) == (
        "Full and partial share the best test accuracy, 80.0 %. "
        "Partial fine-tuning took 50 % of full's training time and 50 % of its peak memory."
    )


def test_lower_loss_is_better_where_there_is_no_accuracy(runs: list[RunRecord]):
    losses = zip(runs, (2.0, 3.0, 1.0), strict=True)
    by_loss = [change(run, result={"test": {"loss": loss}, "eval": {}}) for run, loss in losses]
    assert measure(by_loss) == ("test", "loss") and best(by_loss) == 2
    assert "1.0000: 1.0000 below full" in answer(by_loss)


def test_caution_counts_rows_that_tell_two_runs_apart(runs: list[RunRecord]):
    assert caution(runs).startswith("Of 40 rows, partial alone has 1 right and full alone 0: a gap that chance alone can ")
    wrong = [p | {"prediction": "neither"} for p in runs[0].predictions]
    far = dataclasses.replace(runs[2], predictions=wrong)
    assert "full alone has 32 right and self-supervised alone 0" in caution([runs[0], far])
    assert "can hardly explain" in caution([runs[0], far])
    assert caution([runs[0], dataclasses.replace(runs[1], predictions=runs[1].predictions[1:])]) == ""
    assert caution(runs[:1]) == ""


def test_caution_names_runs_that_were_still_getting_better(runs: list[RunRecord]):
    def evaluated(run: RunRecord, *values: float) -> RunRecord:
        return dataclasses.replace(run, metrics=[{"kind": "eval", "epoch": 1.0, "accuracy": value} for value in values])

    rising = evaluated(runs[0], 0.7, 0.75)
    assert caution([rising]) == (
        "At its last evaluation full (accuracy from 70.0 % to 75.0 %) was still getting better: "
        "more epochs or a higher learning rate may help."
    )
    both = caution([rising, evaluated(runs[1], 0.6, 0.5, 0.8)])
    assert "At their last evaluation full (accuracy from 70.0 % to 75.0 %) and partial (accuracy from 60.0 % to 80.0 %)" in both
    for values in ((0.7,), (0.75, 0.75), (0.75, 0.755), (0.8, 0.7, 0.79)):
        assert caution([evaluated(runs[0], *values)]) == ""


def test_settings_left_at_their_defaults_are_folded_away(run: RunRecord):
    usual = TrainConfig(model="", output=Path()).to_dict()
    page = html([change(run, config={**json.loads(json.dumps(usual)), **run.config, "warmup_steps": 7})])
    shown, folded = page.split("<details>")
    assert "warmup_steps" in shown and "epochs" in shown.partition("Settings</h2>")[2] and "lora_alpha" not in shown
    assert "lora_alpha" in folded and "settings left at their defaults" in folded


def test_runs_of_one_method_are_told_apart(run: RunRecord, tmp_path: Path):
    other = dataclasses.replace(run, directory=tmp_path / "seed-1")
    assert names([run, other]) == ["full (full)", "full (seed-1)"]
    assert names([run, run]) == ["full (full) #1", "full (full) #2"]
    assert "full (seed-1)" in html([run, other])


# Over seeds


def sweep_of(root: Path, scores: dict[tuple[str, float], list[float]], *, tested: tuple[str, float] | None = None):
    """Runs of a sweep: (method, learning rate) -> evaluation accuracy by seed; test scores of one setting alone."""
    found = []
    for (method, rate), values in scores.items():
        for seed, accuracy in enumerate(values):
            run = read_run(make_run(root / f"{method}-{rate}-{seed}", method, accuracy=accuracy))
            result = {k: v for k, v in run.result.items() if k != "test" or (method, rate) == tested} | {"metric": "accuracy"}
            config = run.config | {"learning_rate": rate, "seed": seed, "output": str(run.directory)}
            found.append(dataclasses.replace(run, config=config, result=result))
    return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    scores = {("full", 1e-5): [0.7, 0.75, 0.8], ("full", 5e-5): [0.8, 0.85, 0.9], ("partial", 5e-5): [0.8, 0.8, 0.8]}
    return sweep_of(tmp_path_factory.mktemp("sweep"), scores, tested=("full", 5e-5))


def test_runs_that_differ_in_their_seed_are_one_setting(swept: list[RunRecord]):
    found = settings(swept)
    assert [s.name for s in found] == ["full, learning_rate 1e-05", "full, learning_rate 5e-05", "partial, learning_rate 5e-05"]
    assert [s.score for s in found] == ["75.0 % ± 5.0 (3 seeds)", "85.0 % ± 5.0 (3 seeds)", "80.0 % ± 0.0 (3 seeds)"]
    best = best_setting(found)
    assert best is found[1] and best.split == "eval"
    pair = difference(best, found[2])
    assert pair.differences == pytest.approx([0.0, 0.05, 0.1]) and pair.mean == pytest.approx(0.05)
    assert pair.interval == pytest.approx((0.05 - 4.30265 * 0.05 / 3**0.5, 0.05 + 4.30265 * 0.05 / 3**0.5), rel=1e-4)
    assert "+5.0 points of eval accuracy, seed by seed over 3 seeds (95 % from -7.4 to +17.4)." in pair.sentence
    assert difference(best, found[0]).interval == pytest.approx((0.1, 0.1))  # every seed alike


def test_the_answer_over_seeds_names_the_setting_and_its_test_score(swept: list[RunRecord]):
    assert answer(swept) == (
        "Full, learning_rate 5e-05 had the best mean eval accuracy, 85.0 % ± 5.0 (3 seeds). "
        "Its test accuracy, which chose nothing, is 85.0 % ± 5.0 (3 seeds)."
    )
    assert "Full, learning_rate 5e-05 less partial" in caution(swept)
    text = html(swept)
    assert "<h2>Over seeds</h2>" in text and "0: 80.0 %, 1: 85.0 %, 2: 90.0 %".replace(" %", "\N{NO-BREAK SPACE}%") in text
    assert "<h2>Over seeds</h2>" not in html(swept[::3])


def test_lower_loss_is_the_better_setting_and_one_seed_has_no_interval(swept: list[RunRecord]):
    runs = [change(run, result={"eval": {"loss": loss}, "test": None, "metric": "loss"}) for run, loss in zip(swept, range(9))]
    found = settings(runs)
    assert best_setting(found) is found[0] and found[0].score == "1.0000 ± 1.0000 (3 seeds)"
    one = difference(*settings(runs[::3])[:2])
    assert one.interval is None and one.sentence.endswith("-3.0000 of eval loss, on one seed.")
    assert best_setting(settings([change(run, result={"eval": None}) for run in runs])).mean is None


# Labels and probabilities


def test_scores_label_by_label_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    choose = random.Random(0)
    predictions = [{"label": choose.choice("abc"), "prediction": choose.choice("abd")} for _ in range(200)]
    given, said = ([p[key] for p in predictions] for key in ("label", "prediction"))
    expected = precision_recall_fscore_support(given, said, labels=list("abcd"), zero_division=0.0)
    found = class_scores(predictions, ["a", "b"])
    assert [s.label for s in found] == ["a", "b", "c", "d"]
    assert [s.f1 for s in found] == pytest.approx(list(expected[2])) and [s.rows for s in found] == list(expected[3])
    assert [s.precision or 0.0 for s in found] == pytest.approx(list(expected[0]))
    assert found[3].recall is None and found[2].precision is None


def test_calibration_counts_every_row_once_and_weighs_by_rows():
    def rows(number: int, sure: float, right: int):
        return [
            {"label": "a", "prediction": "a" if i < right else "b", "scores": {"a": sure, "b": sure}} for i in range(number)
        ]

    bins = calibration([*rows(10, 0.55, 5), *rows(30, 1.0, 15), {"label": "a", "prediction": "a", "scores": {}}])
    assert [(b.rows, b.accuracy) for b in bins] == [(10, 0.5), (30, 0.5)]
    assert calibration_error(bins) == pytest.approx((10 * 0.05 + 30 * 0.5) / 40)


def test_what_calibration_tells_of_training_is_said_in_words():
    assert misjudged("full", [Bin(10, 0.6, 0.8), Bin(30, 0.7, 0.9)]) == (
        "Full is 67.5 % sure and 87.5 % right, as a model is that has trained for few steps: "
        "more epochs or a higher learning rate make it surer."
    )
    assert "99.0 % sure and 70.0 % right, as a model is that has seen few rows" in misjudged("full", [Bin(10, 0.99, 0.7)])
    assert misjudged("full", [Bin(10, 0.85, 0.8)]) == ""


def test_labels_memory_and_calibration_have_their_place(runs: list[RunRecord], text: str):
    for heading in ("Label by label", "Calibration", "Where time and memory went"):
        assert f"<h2>{heading}</h2>" in text
    said = Page(html(runs[:1])).text
    assert "precision" in said and "Expected calibration error" in said and "AdamW" in said
    few = [change(run, config={"labels_per_class": n}) for run, n in zip([runs[0], runs[0], runs[1]], (8, 64, 8))]
    assert "<h2>What labels bring</h2>" in html(few) and "<h2>What labels bring</h2>" not in text


# Curves


def test_curve_leaves_out_what_is_not_finite_or_absent(run: RunRecord):
    metrics = [{"kind": "train", "step": s, "loss": v} for s, v in enumerate([1.0, None, math.nan, 2.0])]
    odd = dataclasses.replace(run, metrics=[*metrics, {"kind": "train", "step": None, "loss": 1.0}, {"kind": "eval"}, {}])
    assert curve(odd, "train", ["absent", "loss"], "step") == ([0.0, 3.0], [1.0, 2.0])
    assert "Left out, as not finite: 2." in html([odd])


def test_smoothing_keeps_a_straight_line():
    line = [float(i) for i in range(100)]
    assert smoothed(line) == pytest.approx(line)
    assert smoothed([]) == []


def test_long_runs_are_thinned():
    values = [1.0] * (3 * MOST_POINTS + 1)
    assert len(thinned(values)) <= MOST_POINTS and set(thinned(values)) == {1.0}


def test_figures_stay_text_and_take_the_pages_colours():
    from ftjax.report.figures import Series

    series = [Series("$x$ <b>", number, [0.0, 1.0], [1.0, 0.5]) for number in range(2)]
    svg = draw(series, prefix="a", title="Loss (nats)", x_label="epoch", points=True, label="said")
    assert "Loss (nats)" in svg and "$x$ &lt;b&gt;" in svg
    assert "var(--series-0)" in svg and "var(--series-1)" in svg and "currentColor" in svg
    assert "#0300" not in svg and "<metadata" not in svg and "DOCTYPE" not in svg and "ffffff" not in svg


# The page


def test_page_is_whole_and_self_contained(text: str):
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert "default-src 'none'" in text and 'name="viewport"' in text
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    urls = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert urls == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}


def test_page_is_accessible(text: str):
    page = Page(text)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == 8


def test_ids_are_unique_and_every_reference_has_its_target(text: str):
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_page_says_what_matters(text: str):
    said = Page(text).text.replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "Partial fine-tuning had the best",
        "last:2,head",
        "Most confident mistakes",
        "text 39",
        "5 min 31 s",
        "0.1.0",
    ):
        assert part in said
    assert "ftjax train --model organisation/small-bert --train-file 'my <file>.csv'" in said


def test_score_over_training_time_is_drawn_where_two_runs_can_be_compared(runs: list[RunRecord], text: str):
    assert "<h2>What it cost</h2>" in text and "training time (s)" in text
    assert "What it cost" not in html(runs[:1])
    timeless = [dataclasses.replace(run, result={k: v for k, v in run.result.items() if k != "train_seconds"}) for run in runs]
    assert "What it cost" not in html(timeless)


def test_same_runs_give_the_same_bytes(runs: list[RunRecord], text: str):
    assert text == html([read_run(run.directory) for run in runs])


def test_everything_a_user_gives_is_escaped(tmp_path: Path):
    directory = make_run(tmp_path / f"a{IMAGE[:6]}", labels=("fresh", IMAGE))
    one = read_run(directory)
    predictions = [p | {"text": f"{SCRIPT}\x00\ud800"} for p in one.predictions]
    config = one.config | {
        "model": SCRIPT,
        "command": SCRIPT,
        SCRIPT: {IMAGE: [SCRIPT]},
        "device": IMAGE,
        "seed": IMAGE,
    }
    hostile = dataclasses.replace(one, config=config, predictions=predictions, result=one.result | {SCRIPT: IMAGE})
    text = html([hostile, change(hostile, config={"method": SCRIPT})])
    assert text.encode("utf-8")
    page = Page(text)
    assert "<script" not in text and "<img" not in text
    assert SCRIPT in page.text and IMAGE in page.text and "\ufffd" in page.text
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


@pytest.mark.parametrize("missing", ["metrics.jsonl", "predictions.jsonl"])
def test_missing_files_leave_their_section_out(run: RunRecord, missing: str):
    (run.directory / missing).unlink()
    text = html([read_run(run.directory)])
    absent, present = ("Learning curves", "Confusion")
    if missing == "predictions.jsonl":
        absent, present = present, absent
    assert f"<h2>{absent}" not in text and f"<h2>{present}" in text


def test_bare_runs_still_make_a_page(run: RunRecord):
    bare = RunRecord(run.directory, {}, [], {}, [])
    page = Page(html([bare, bare]))
    assert page.all("table") and not page.all("svg")
    odd = RunRecord(run.directory, {"versions": 1, "labels": None}, [{"kind": "train"}], {"seconds": 3, "test": None}, [{}])
    assert Page(html([odd])).all("h1")


def test_many_labels_show_the_pairs_most_often_confused(run: RunRecord):
    predictions = [{"text": "t", "label": f"l{n % 20}", "prediction": f"l{n % 7}", "scores": {}} for n in range(100)]
    many = dataclasses.replace(run, config=run.config | {"labels": [f"l{n}" for n in range(20)]}, predictions=predictions)
    assert "The labels most often confused, of 20 labels and 100 test rows." in html([many])


def test_no_mistakes(run: RunRecord):
    right = dataclasses.replace(run, predictions=[p | {"prediction": p["label"]} for p in run.predictions])
    assert "every prediction was right" in html([right])


def test_write_report_is_whole_or_not_at_all(run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    write_report([run.directory], path)
    assert path.read_text(encoding="utf-8") == html([run])
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_report([tmp_path / "nowhere"], path)
    with pytest.raises(InputError, match="No run"):
        write_report([], path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_report([run.directory], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob(".*")] == []
