"""`ftjax compare` over learning rates and seeds: one compilation, nothing done twice, the test rows only for the best."""

import json
import math
from pathlib import Path

import pytest

from ftjax.cli import main
from ftjax.config import CompareConfig
from ftjax.errors import InputError

SHORT = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--epochs", "1")


@pytest.fixture(scope="module")
def arguments(tiny_bert, few_reviews, tmp_path_factory):
    """Of a sweep of two learning rates and two seeds."""
    data = ("--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--test-file", few_reviews["eval"])
    output = tmp_path_factory.mktemp("sweep") / "runs"
    flags = ("--methods", "partial", "--train-parameters", "head", "--learning-rate", "1e-3,1e-4", "--seeds", "0,1")
    return [str(a) for a in ("compare", "--model", tiny_bert, *data, "--output", output, *SHORT, *flags, "--resume", "--json")]


@pytest.fixture(scope="module")
def swept(arguments):
    """The directory of the finished sweep."""
    main(arguments)
    return Path(arguments[arguments.index("--output") + 1])


def results(directory):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(directory.glob("*/result.json"))}


def test_one_compilation_serves_all_runs_and_only_the_best_is_tested(swept):
    found = results(swept)
    assert list(found) == [f"partial-lr-{rate}-seed-{seed}" for rate in ("0.0001", "0.001") for seed in (0, 1)]
    compiled = [name for name, result in found.items() if result["seconds"]["compile"]]
    assert compiled == ["partial-lr-0.001-seed-0"]  # the first one
    said = json.loads((swept / "sweep.json").read_text())
    means = {setting["learning_rate"]: setting["scores"]["mean"] for setting in said["settings"]}
    best = said["best"]["learning_rate"]
    assert means[best] == max(means.values())
    assert [name for name, result in found.items() if "test" in result] == [f"partial-lr-{best:g}-seed-{s}" for s in (0, 1)]
    assert said["best"]["test"]["values"] == said["best"]["scores"]["values"]  # the same rows, of the same models
    assert len(said["differences"][0]["differences"]) == 2 and len(said["differences"][0]["interval"]) == 2
    page = (swept / "report.html").read_text(encoding="utf-8")
    assert "over 2 seeds" in page


def test_a_run_of_a_sweep_is_the_run_that_train_makes(swept, arguments, tmp_path):
    plain = ["train", *arguments[1 : arguments.index("--output")], "--output", str(tmp_path / "run"), *SHORT, "--seed", "1"]
    main([*plain, "--learning-rate", "1e-4", "--method", "partial", "--train-parameters", "head"])
    weights = [d / "model" / "model.safetensors" for d in (tmp_path / "run", swept / "partial-lr-0.0001-seed-1")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_finished_is_not_done_again(swept, arguments, capsys):
    written = {path: path.stat().st_mtime_ns for path in swept.glob("*/result.json")}
    main(arguments)
    out, err = capsys.readouterr()
    assert err.count("this run is complete") == 4
    assert json.loads(out) == json.loads((swept / "sweep.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in written} == written


def sweep(tmp_path, **changes):
    return CompareConfig(**{"model": "m", "output": tmp_path / "o", "train_file": tmp_path / "t.csv", **changes})


def test_a_grid_that_makes_no_sense(tmp_path):
    for changes, words in (
        ({"learning_rate": (1e-3, 1e-4)}, "--eval-file"),
        ({"learning_rate": (1e-3, 1e-3)}, "--learning-rate: name each one once"),
        ({"methods": ()}, "--methods"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"learning_rate": (1e-3, math.nan), "eval_file": tmp_path / "e.csv"}, "--learning-rate nan"),
    ):
        with pytest.raises(InputError, match=words):
            sweep(tmp_path, **changes).check()


def test_without_a_grid_the_runs_are_the_three_methods(tmp_path):
    config = sweep(tmp_path, partial_learning_rate=(1e-2,), seed=3)
    assert not config.is_sweep
    (full,), (partial,), (supervised,) = (config.runs(method) for method in config.methods)
    assert [run.output.name for run in (full, partial, supervised)] == ["full", "partial", "self-supervised"]
    assert (full.learning_rate, partial.learning_rate, full.seed) == (5e-5, 1e-2, 3)
