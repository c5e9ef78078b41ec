"""What is made ready while the first step is compiled: the program that scores, and the packages of scores and report."""

import importlib
import inspect
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from conftest import random_batch

from ftjax import parallel, tasks
from ftjax.cli import main
from ftjax.parallel import Compiled
from ftjax.report import figures
from ftjax.sharding import data_mesh

pytestmark = pytest.mark.xdist_group("look ahead")

AHEAD = "look ahead"


@pytest.fixture
def train(tiny_bert, few_reviews, tmp_path):
    """Trains, and gives result.json."""

    def train(name):
        files = ("--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--test-file", few_reviews["eval"])
        flags = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--epochs", "2", "--output", tmp_path / name)
        main([str(a) for a in ("train", "--model", tiny_bert, *files, *flags)])
        return json.loads((tmp_path / name / "result.json").read_text())

    return train


@pytest.fixture
def compiled(monkeypatch):
    """The names of the threads that compiled a program, in their order. One that looks ahead fails where `fails` is set."""
    names, compiled = [], parallel.compiled

    def noted(*arguments):
        names.append(threading.current_thread().name)
        if names[-1] == AHEAD and noted.fails:
            raise RuntimeError("fails ahead")
        return compiled(*arguments)

    noted.fails, noted.names = False, names
    monkeypatch.setattr(parallel, "compiled", noted)
    return noted


def test_what_scores_is_compiled_ahead_and_nothing_depends_on_that(train, compiled, monkeypatch):
    ready = train("ready")
    assert sorted(compiled.names) == ["MainThread", AHEAD]  # the step and what scores, each once

    compiled.fails = True
    compiled.names.clear()
    monkeypatch.setattr(figures, "PACKAGES", ("no_such_package",))
    late = train("late")
    assert sorted(compiled.names) == ["MainThread", "MainThread", AHEAD]
    for scores in ("eval", "test"):
        assert late[scores] == ready[scores]


def test_threads_that_want_a_program_compile_it_once(compiled):
    program = Compiled(lambda scale, batch: batch["input_ids"] * scale, data_mesh(jax.devices()[:1]), donate=False)
    calls = []
    program.meanwhile = lambda: calls.append(len(compiled.names))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: program.program(jax.numpy.int32(2), random_batch()), range(4)))
    assert len(compiled.names) == 1
    assert calls == [0]  # before it is compiled, and once
    assert all(each is found[0] for each in found)


def test_packages_are_those_that_scores_and_report_import():
    for task in map(tasks.task_class, tasks.TASKS):
        for package in task.packages:
            assert f"from {package} import" in inspect.getsource(importlib.import_module(task.__module__))
    for package in figures.PACKAGES:
        assert f"from {package} import" in inspect.getsource(figures)
