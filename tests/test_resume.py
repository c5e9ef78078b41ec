"""Runs that are killed: whatever happens, a resumed run ends with the very same bytes."""

import json
import os
import signal
import time

import pytest
from conftest import run_command, start_command

pytestmark = pytest.mark.xdist_group("resume")  # one reference run for all of these

TIMED = ("examples_per_second", "seconds", "step_seconds", "train_seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def arguments(tiny_bert, few_reviews):
    """A self-supervised run with dropout, accumulation and ragged batches, but for its --output."""
    return [
        *("train", "--method", "self-supervised", "--model", tiny_bert, "--train-file", few_reviews["train"]),
        *("--unlabeled-file", few_reviews["unlabeled"], "--eval-file", few_reviews["eval"], "--epochs", 2, "--resume"),
        *("--batch-size", 10, "--gradient-accumulation", 2, "--save-every", 3, "--log-every", 2, "--buckets", 2),
        *("--learning-rate", "1e-3", "--max-length", 64),
    ]


@pytest.fixture(scope="module")
def reference(arguments, tmp_path_factory):
    """The run that nothing happens to."""
    output = tmp_path_factory.mktemp("reference") / "run"
    done = run_command(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def content(output):
    """What must not depend on interruptions: the model's bytes, the metrics and the result, without timings."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((output / "result.json").read_text())
    return (output / "model" / "model.safetensors").read_bytes(), [untimed(row) for row in [*lines, result]]


def untimed(value):
    """A JSON value without what is measured, however deep."""
    return {k: untimed(v) for k, v in value.items() if k not in TIMED} if isinstance(value, dict) else value


def interrupt(arguments, output, number, when):
    """Start the run, send it a signal once `when()` says so, and return its exit status."""
    command = start_command(*arguments, "--output", output)
    deadline = time.monotonic() + 200
    while command.running and not when() and time.monotonic() < deadline:
        time.sleep(0.002)
    command.send_signal(number)
    done = command.finish(timeout=100)
    return done.returncode, done.stderr


def logged(output, step):
    """Whether metrics.jsonl has reached a step."""

    def reached():
        path = output / "metrics.jsonl"
        return path.exists() and any(
            json.loads(line)["step"] >= step for line in path.read_text().splitlines() if line[-1:] == "}"
        )

    return reached


def test_the_reference_has_the_steps_and_files_it_should(reference):
    _, rows = content(reference)
    assert rows[-1]["steps"] == 20
    assert [row["step"] for row in rows[:-1] if row["kind"] == "eval"] == [10, 20]
    assert {row["kind"] for row in rows[:-1]} == {"train", "eval"}
    assert {"classification_loss", "masked_lm_loss", "gradient_norm", "loss"} <= set(rows[0])
    for name in (
        "config.json",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "model/config.json",
        "tensorboard",
        "checkpoints",
    ):
        assert (reference / name).exists(), name


def test_sigkill_again_and_again_changes_nothing(arguments, reference, tmp_path):
    output = tmp_path / "run"
    for step in (1, 5, 12):  # before any checkpoint, after one, in the second epoch
        status, stderr = interrupt(arguments, output, signal.SIGKILL, logged(output, step))
        assert status == -signal.SIGKILL, stderr
        assert not (output / "result.json").exists()
    done = run_command(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "Resuming after step" in done.stderr
    assert content(output) == content(reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(arguments, reference, tmp_path, number):
    output = tmp_path / "run"
    status, stderr = interrupt(arguments, output, number, logged(output, 4))
    assert status == 75, stderr
    assert "state saved; the same command goes on" in stderr
    assert "Traceback" not in stderr
    done = run_command(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    assert content(output) == content(reference)


def test_a_complete_run_is_not_done_again(arguments, reference):
    before = content(reference)
    done = run_command(*arguments, "--output", reference, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["steps"] == 20
    assert "complete" in done.stderr
    assert content(reference) == before


@pytest.mark.long
def test_a_full_disk_ends_clearly_and_the_last_checkpoint_survives(arguments, reference, tmp_path):
    output = tmp_path / "run"
    status, stderr = interrupt(arguments, output, signal.SIGTERM, logged(output, 4))
    assert status == 75, stderr
    saved = sorted(os.listdir(output / "checkpoints"))

    # As much of a full disk as a test may have anywhere: no file may grow beyond 100 kB.
    full = run_command(*arguments, "--output", output, largest_file=100_000)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "--resume" in full.stderr.splitlines()[-1]
    assert set(saved) <= set(os.listdir(output / "checkpoints"))
    done = run_command(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    assert content(output) == content(reference)


def test_another_runs_directory_is_not_touched(arguments, reference, tmp_path):
    before = content(reference)
    other = [a if a != "1e-3" else "2e-3" for a in arguments]
    done = run_command(*other, "--output", reference)
    assert done.returncode == 2
    assert "--learning-rate is 0.001, not 0.002" in done.stderr
    fresh = run_command(*[a for a in arguments if a != "--resume"], "--output", reference)
    assert fresh.returncode == 2
    assert "--resume" in fresh.stderr
    assert content(reference) == before


@pytest.mark.long
def test_killed_across_stages_and_with_a_prefix_cache(tiny_bert, few_reviews, tmp_path):
    """Gradual unfreezing: what is restored is of the stage it was saved in, and the cache is made anew."""
    arguments = [
        *("train", "--method", "partial", "--train-parameters", "head", "--unfreeze", "2=last:1,head", "3=all"),
        *("--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--epochs", 4),
        *("--batch-size", 10, "--save-every", 4, "--log-every", 1, "--buckets", 1, "--learning-rate", "1e-3", "--resume"),
        *("--max-length", 64, "--prefix-cache", "disk", "--prefix-cache-dir", tmp_path / "cache"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_command(*arguments, "--output", whole)
    assert done.returncode == 0, done.stderr
    assert "From here on trains last:1,head" in done.stderr and "From here on trains all" in done.stderr
    assert "The first 2 of 2 layers are frozen" in done.stderr and "kept in" in done.stderr
    for step in (8, 14, 20):  # in the first stage, in the second, in the third
        status, stderr = interrupt(arguments, killed, signal.SIGKILL, logged(killed, step))
        assert status == -signal.SIGKILL, stderr
    done = run_command(*arguments, "--output", killed)
    assert done.returncode == 0, done.stderr
    assert content(killed) == content(whole)
    exported = tmp_path / "model"
    done = run_command("export", "--checkpoint", whole, "--output", exported)
    assert done.returncode == 0, done.stderr
    assert (exported / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
