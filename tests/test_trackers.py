"""Trackers: both get what TensorBoard gets, under its names, and find their run again after a kill."""

import json
import sys
import types

import pytest
from conftest import fail

from ftjax.cli import main


@pytest.fixture
def trackers(monkeypatch):
    """Stand-ins for both libraries: name -> what they were told."""
    told = {}
    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        told[name] = calls = []

        def init(calls=calls, **named):
            print("a greeting")  # as trackio does, on stdout
            calls.append(("init", named))
            return types.SimpleNamespace(
                log=lambda values, step: calls.append(("log", step, values)), finish=lambda: calls.append(("finish",))
            )

        module.init = init
        monkeypatch.setitem(sys.modules, name, module)
    return told


def training(model, files, output):
    """A short run."""
    arguments = ["train", "--model", model, "--train-file", files["train"], "--eval-file", files["eval"], "--output", output]
    arguments += ["--max-length", 64, "--batch-size", 8, "--buckets", 1, "--method", "partial", "--train-parameters", "head"]
    return [str(a) for a in (*arguments, "--epochs", 1, "--log-every", 4, "--json")]


def test_trackers_get_the_numbers_of_metrics_jsonl(trackers, tiny_bert, few_reviews, tmp_path, capsys):
    run = tmp_path / "run"
    main([*training(tiny_bert, few_reviews, run), "--tracker", "wandb", "trackio", "--resume"])
    json.loads(capsys.readouterr().out)  # nothing but the result
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (line["step"], {f"{line['kind']}/{name}": value for name, value in line.items() if name not in ("kind", "step")})
        for line in lines
    ]
    for calls in trackers.values():
        (_, named), *logged, last = calls
        assert [call[1:] for call in logged] == expected and last == ("finish",)
        assert named["project"] == "ftjax" and named["resume"] == "allow" and named["config"]["learning_rate"] == 5e-5
    number = json.loads((run / "config.json").read_text())["tracker_run"]
    assert trackers["wandb"][0][1]["id"] == number and trackers["trackio"][0][1]["name"] == f"run-{number}"


def test_a_tracker_that_is_not_there_or_does_not_start(trackers, tiny_bert, few_reviews, tmp_path, capsys, monkeypatch):
    arguments = ["train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--output", tmp_path / "run"]
    arguments += ["--max-length", 64, "--batch-size", 8]
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "wandb", None)
        assert "pip install 'ftjax[wandb]'" in fail(capsys, *arguments, "--tracker", "wandb")
    assert not (tmp_path / "run").exists()

    def refuse(**_):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    assert "--tracker wandb: could not start (no API key configured)" in fail(capsys, *arguments, "--tracker", "wandb")


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(method, trackers, tiny_bert, few_reviews, tmp_path, capsys):
    def fails(*_, **__):
        raise ConnectionError("the server\nis gone")

    wandb, start = sys.modules["wandb"], sys.modules["wandb"].init
    wandb.init = lambda **named: types.SimpleNamespace(**{**vars(start(**named)), method: fails})
    main([*training(tiny_bert, few_reviews, tmp_path / "run"), "--tracker", "wandb", "trackio"])
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert captured.err.count("--tracker wandb: failed (the server is gone)") == 1
    assert len([call for call in trackers["trackio"] if call[0] == "log"]) == 3 and trackers["trackio"][-1] == ("finish",)
