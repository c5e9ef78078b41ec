"""`ftjax benchmark`: what it times, and what it prints."""

import importlib.util
import json

import pytest
from conftest import fail, run_command

from ftjax.cost.benchmark import matmul_flops

SMALL = ("--batch-size", "4", "--max-length", "16", "--steps", "3")
NEEDED = {"step_seconds", "examples_per_second", "tokens_per_second", "mfu"}


def test_a_directory_with_rows_of_a_file_and_a_trace(tiny_bert, few_reviews, tmp_path):
    trace = tmp_path / "trace"
    done = run_command(
        *("benchmark", "--model", tiny_bert, "--train-file", few_reviews["train"], *SMALL, "--precision", "bfloat16"),
        *("--gradient-accumulation", "2", "--profile", trace, "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= NEEDED
    assert found["examples_per_second"] == pytest.approx(4 / found["step_seconds"])
    assert found["tokens_per_second"] == pytest.approx(4 * found["length"] / found["step_seconds"])
    used = found["model_flops"] / (found["step_seconds"] * found["matmul_flops_per_second"])
    assert found["mfu"] == pytest.approx(used)
    assert 0 < used < 1
    assert len(found["step_seconds_all"]) == 3
    line = found["pipeline"]
    assert line["examples_per_second"] > 0
    assert line["compilations"] == len(line["bucket_lengths"]) + (found["length"] not in line["bucket_lengths"])
    assert list(trace.rglob("*.xplane.pb"))  # what XProf opens


@pytest.mark.long
def test_a_shape_without_weights_and_a_frozen_prefix(capsys):
    done = run_command("benchmark", "--model", "minilm-l6", *SMALL, "--method", "partial")
    assert done.returncode == 0, done.stderr
    for word in ("step", "examples/s", "MFU", "model FLOPs", "peak memory", "pipeline"):
        assert word in done.stdout


def test_mistakes(capsys, tiny_bert, few_reviews):
    small = ("benchmark", *SMALL, "--batch-size", "8", "--model")  # for the suite's eight devices
    assert "no tokenizer" in fail(capsys, *small, "minilm-l6", "--train-file", few_reviews["train"])
    assert "bert-large" in fail(capsys, *small, "./bert-bas")
    assert "at least 2" in fail(capsys, *small, tiny_bert, "--steps", "1")
    assert "have a counterpart" in fail(capsys, *small, tiny_bert, "--against", "torch", "--method", "self-supervised")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_without_torch_the_line_says_what_to_name(capsys, tiny_bert):
    line = fail(capsys, "benchmark", *SMALL, "--batch-size", "8", "--model", tiny_bert, "--against", "torch")
    assert "--torch-python" in line


@pytest.mark.parity
@pytest.mark.parametrize("method", ["full", "partial"])
def test_against_torch(tiny_bert, method):
    pytest.importorskip("torch")
    done = run_command("benchmark", "--model", tiny_bert, *SMALL, "--against", "torch", "--method", method, "--json")
    assert done.returncode == 0, done.stderr
    rival = json.loads(done.stdout)["against"]
    assert rival["step_seconds"] > 0
    low, high = rival["ratio_spread"]
    assert low <= rival["ratio"] <= high


def test_a_large_matmul_is_timed():
    assert matmul_flops("float32") > 1e8
