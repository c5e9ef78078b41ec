"""What a thread imports while the first step is compiled: the packages of checkpoints, scores and report."""

import importlib
import inspect
import json
import sys

import jax
import pytest
from conftest import random_batch

from ftjax import checkpoint, loop, parallel, tasks
from ftjax.cli import main
from ftjax.parallel import Compiled
from ftjax.report import figures
from ftjax.sharding import data_mesh


@pytest.fixture
def train(tiny_bert, few_reviews, tmp_path):
    """Trains, and gives result.json."""

    def train(name):
        files = ("--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--test-file", few_reviews["eval"])
        flags = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--epochs", "1", "--output", tmp_path / name)
        main([str(a) for a in ("train", "--model", tiny_bert, *files, *flags)])
        return json.loads((tmp_path / name / "result.json").read_text())

    return train


def test_what_cannot_be_imported_ahead_is_left_to_whoever_needs_it(train, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "import_packages", asked.append)
    plain = train("plain")
    assert asked == [["orbax.checkpoint", "sklearn.metrics", *figures.PACKAGES]]  # once, not for what scores

    monkeypatch.undo()
    monkeypatch.setattr(figures, "PACKAGES", ("no_such_package",))
    assert train("missing")["test"] == plain["test"]


def test_after_a_missing_package_come_the_others(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    loop.import_packages(["no_such_package", "this"])
    assert "this" in sys.modules


def test_what_is_done_meanwhile_begins_before_the_first_program_is_compiled_and_once(monkeypatch):
    compiled, order = parallel.compiled, []
    monkeypatch.setattr(parallel, "compiled", lambda *arguments: order.append("compiled") or compiled(*arguments))
    program = Compiled(lambda scale, batch: batch["input_ids"] * scale, data_mesh(jax.devices()[:1]), donate=False)
    program.meanwhile = lambda: order.append("meanwhile")
    for length in (8, 8, 12):
        program(jax.numpy.int32(2), random_batch(length=length))
    assert order == ["meanwhile", "compiled", "compiled"]


def test_packages_are_those_that_checkpoints_scores_and_report_import():
    for task in map(tasks.task_class, tasks.TASKS):
        for package in task.packages:
            assert f"from {package} import" in inspect.getsource(importlib.import_module(task.__module__))
    for module in (figures, checkpoint):
        for package in module.PACKAGES:
            assert f"import {package}" in (source := inspect.getsource(module)) or f"from {package} import" in source
