"""What happens to runs besides kills: damaged checkpoints, changed files, disks that fail or hang, NaN, other devices."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time

import forked
import jax
import numpy as np
import pytest
from conftest import fail, random_batch, run_command, tiny_model
from safetensors.numpy import load_file, save_file
from test_resume import interrupt, logged

from ftjax import digest, loop, rundir
from ftjax.checkpoint import DIGESTS, LATER, Checkpoints, damage, set_damaged_aside
from ftjax.cli import main
from ftjax.config import TrainConfig
from ftjax.errors import InputError
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.optimizer import adamw
from ftjax.partition import label, split
from ftjax.redact import redact
from ftjax.stall import within
from ftjax.step import create_state, train_step

pytestmark = pytest.mark.xdist_group("surviving")  # one reference run for all of these


@pytest.fixture(scope="module")
def state():
    """A small state, whose values say nothing."""
    model, params = tiny_model()
    labels = label(params, "last:1,head", layers=2)
    terms = (Term("classification", 1.0, Classification(model)),)
    return create_state(params, labels, terms, adamw(split(params, labels)[0], 1e-3))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """A directory with the checkpoints of steps 1, 2 and 3, of which 1 is the best."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, higher_is_better=True)
    for step in (1, 2, 3):
        trainable = {name: value + step for name, value in state.trainable.items()}
        checkpoints.save(dataclasses.replace(state, step=state.step + step, trainable=trainable), {"step": step}, 1.0 / step)
    checkpoints.close()
    return directory


def flip(path, where=0.5):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def largest(directory):
    """The file that holds the arrays' values."""
    return max(directory.rglob("*"), key=lambda path: path.stat().st_size)


def test_every_file_of_a_checkpoint_is_watched(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    files = [path for path in (directory / "3").rglob("*") if path.is_file()]
    assert damage(directory / "3") is None
    assert any(path.stat().st_size > 1000 for path in files) and len(files) > 8
    for path in files:
        name, content = path.relative_to(directory / "3").as_posix(), path.read_bytes()
        watched = path.name not in LATER
        if content:
            flip(path)
            assert (damage(directory / "3") is not None) == watched, name
        path.write_bytes(content[:-1])
        assert (damage(directory / "3") is not None) == (watched and content != b""), name
        path.unlink()
        assert (damage(directory / "3") is not None) == watched, name
        if watched and path.name != DIGESTS:
            assert damage(directory / "3") == f"{name} is missing"
        path.write_bytes(content)
    assert damage(directory / "3") is None


def test_files_that_are_not_watched_do_not_change_what_is_restored(saved, state, tmp_path):
    """Orbax writes into these when it renames the directory: damage to them is found by Orbax or does not matter."""
    for number, path in enumerate(path for path in (saved / "3").rglob("*") if path.name in LATER):
        directory = shutil.copytree(saved, tmp_path / str(number))
        (directory / path.relative_to(saved)).write_bytes(b"\xff{")
        try:
            checkpoints = Checkpoints(directory, higher_is_better=True, read_only=True)
            found, _ = checkpoints.restore(3, state)
        except InputError:
            continue
        assert int(found.step) == 3
        name = next(iter(state.trainable))
        np.testing.assert_array_equal(found.trainable[name], state.trainable[name] + 3)
        checkpoints.close()


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(saved, state, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    said = []
    set_damaged_aside(directory, said.append)
    assert not said
    cut = largest(directory / "3")
    cut.write_bytes(cut.read_bytes()[:-10])
    flip(directory / "1" / "progress" / "metadata")
    set_damaged_aside(directory, said.append)
    assert len(said) == 2 and cut.name in said[0] and "of step 2, is there" in said[0] and "none before it" in said[1]
    assert (tmp_path / "damaged-3").is_dir() and (tmp_path / "damaged-1").is_dir()
    checkpoints = Checkpoints(directory, higher_is_better=True)
    assert checkpoints.steps() == [2] and checkpoints.latest_step() == checkpoints.best_step() == 2
    found, progress = checkpoints.restore(2, state)
    assert int(found.step) == 2 and progress == {"step": 2}
    checkpoints.close()
    with pytest.raises(InputError, match="cannot be restored"):
        checkpoints.restore(3, state)


def test_a_checkpoint_of_another_model_is_refused(saved, state, tmp_path):
    larger = {name: jax.numpy.concatenate([value, value]) for name, value in state.trainable.items()}
    checkpoints = Checkpoints(saved, higher_is_better=True, read_only=True)
    with pytest.raises(InputError, match="cannot be restored"):
        checkpoints.restore(3, dataclasses.replace(state, trainable=larger))
    checkpoints.close()


@pytest.fixture(scope="module")
def arguments(tiny_bert, few_reviews):
    """A run that 8 devices or 1 can do."""
    return [
        *("train", "--model", str(tiny_bert), "--train-file", str(few_reviews["train"]), "--eval-file"),
        *(str(few_reviews["eval"]), "--epochs", "2", "--batch-size", "16", "--log-every", "1"),
        *("--buckets", "1", "--max-length", "64", "--learning-rate", "1e-3", "--resume"),
    ]


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Signal the run when it has settled a step."""
    settle = loop.Session.settle

    def settled(self, per_epoch):
        at = self.running[0][0]
        settle(self, per_epoch)
        if at == step:
            self.stopped.append(number)

    monkeypatch.setattr(loop.Session, "settle", settled)


@pytest.fixture(scope="module")
def begun(arguments, tmp_path_factory):
    """A run on 8 devices that was stopped after 3 steps: its directory, to be copied."""
    output = tmp_path_factory.mktemp("begun") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_at(patch, 1)
        main([*arguments, "--save-every", "2", "--output", str(output)])
    assert stopped.value.code == 75
    return output


@pytest.fixture(scope="module")
def reference(arguments, begun, tmp_path_factory):
    """The same run to its end."""
    output = shutil.copytree(begun, tmp_path_factory.mktemp("reference") / "run")
    main([*arguments, "--output", str(output)])
    return output


def model_of(output):
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.long
def test_from_8_devices_to_1_and_back(arguments, begun, reference, tmp_path):
    output = shutil.copytree(begun, tmp_path / "run")
    status, stderr = interrupt(arguments, output, signal.SIGTERM, logged(output, 4))
    assert status == 75 and "Resuming after step 3" in stderr, stderr
    main([*arguments, "--output", str(output)])
    for name, value in model_of(reference).items():
        np.testing.assert_allclose(model_of(output)[name], value, atol=2e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("before, after", [("data=2,fsdp=4", "data=8"), ("data=8", "data=1"), ("data=1", "fsdp=8")])
def test_killed_on_one_mesh_and_resumed_on_another(arguments, reference, tmp_path, capsys, before, after):
    output = tmp_path / "run"
    eight = {"environment": dict(os.environ)}
    command = forked.Command(*arguments, "--save-every", "2", "--mesh", before, "--output", output, **eight)
    deadline = time.monotonic() + 200
    while command.running and not logged(output, 5)() and time.monotonic() < deadline:
        time.sleep(0.002)
    command.send_signal(signal.SIGKILL)
    assert command.finish(timeout=100).returncode == -signal.SIGKILL
    main([*arguments, "--mesh", after, "--output", str(output)])
    assert "Resuming after step" in capsys.readouterr().err
    for name, value in model_of(reference).items():
        np.testing.assert_allclose(model_of(output)[name], value, atol=2e-5, err_msg=name)


def test_damaged_and_lost_checkpoints_are_said_and_others_used(arguments, begun, reference, tmp_path, monkeypatch, capsys):
    """The newest one is damaged when the run is resumed; the best one is when the run ends."""
    output = shutil.copytree(begun, tmp_path / "run")
    flip(largest(output / "checkpoints" / "3"))
    evaluate = loop.Session.evaluate

    def first_is_best(self, epoch):
        value = evaluate(self, epoch)
        self.progress.best_step = 4
        if epoch == 2:
            self.wait()
            flip(largest(output / "checkpoints" / "4"))
        return value

    monkeypatch.setattr(loop.Session, "evaluate", first_is_best)
    main([*arguments, "--output", str(output)])
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "a checkpoint that cannot be used" in line]
    assert "checkpoints/3" in line and "is damaged" in line and "of step 2, is there" in line
    assert any("Resuming after step 2" in line for line in lines)
    assert any("best checkpoint, of step 4, cannot be used (state/" in line for line in lines)
    result, expected = (json.loads((run / "result.json").read_text()) for run in (output, reference))
    assert result["best_step"] == 8 and result["eval"] == expected["eval"]
    for name, value in model_of(reference).items():
        np.testing.assert_array_equal(model_of(output)[name], value)


def test_a_damaged_checkpoint_is_not_exported(reference, tmp_path, capsys):
    output = shutil.copytree(reference, tmp_path / "run")
    flip(largest(output / "checkpoints" / "8"))
    line = fail(capsys, "export", "--checkpoint", output, "--output", tmp_path / "model")
    assert "that of step 8 cannot be used (state/" in line and "whole are those of: 4." in line
    main(["export", "--checkpoint", str(output / "checkpoints" / "4"), "--output", str(tmp_path / "model")])
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize("setting, flag", [("eval", "--eval-file"), ("model", "--model")])
def test_a_file_that_changed_ends_the_resumed_run(arguments, begun, few_reviews, tiny_bert, tmp_path, capsys, setting, flag):
    output = shutil.copytree(begun, tmp_path / "run")
    path = few_reviews["eval"] if setting == "eval" else tiny_bert / "tokenizer_config.json"
    content = path.read_bytes()
    before = sorted(output.rglob("*"))
    try:
        path.write_bytes(content + b"\n")
        line = fail(capsys, *arguments, "--output", output)
        assert flag in line and f"{path.name} has changed since" in line
        path.write_bytes(content)
        if setting == "model":
            path.unlink()
            assert "is gone" in fail(capsys, *arguments, "--output", output)
            path.write_bytes(content)
            (tiny_bert / "vocab.json").write_text("{}")
            assert "vocab.json is new" in fail(capsys, *arguments, "--output", output)
            (tiny_bert / "vocab.json").unlink()
    finally:
        path.write_bytes(content)
    assert sorted(output.rglob("*")) == before
    assert digest.check_inputs(None, {"model": {"a": "b"}}, TrainConfig(model="m", output=output)) is None  # older runs


def test_two_runs_cannot_write_to_one_directory(arguments, begun, tmp_path, capsys):
    output = shutil.copytree(begun, tmp_path / "run")
    before = sorted(output.rglob("*"))
    with rundir.owned(output):
        line = fail(capsys, *arguments, "--output", output)
    assert f"process {os.getpid()} on " in line and "is at this run" in line
    assert sorted(output.rglob("*")) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    with rundir.owned(empty):
        assert "is at this run" in fail(capsys, *arguments, "--output", empty)
    with rundir.owned(empty), pytest.raises(InputError, match="is at this run"), rundir.owned(empty):
        pass
    assert rundir.check(TrainConfig(model="m", output=empty)) is False  # what is left of a lock is no run


def test_a_failing_disk_is_said_in_one_line(arguments, begun, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(rundir.os, "replace", fails)
    line = fail(capsys, *arguments, "--output", tmp_path / "new")
    assert os.strerror(errno.EIO) in line and "--resume" in line
    monkeypatch.undo()
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fails)
    line = fail(capsys, *arguments, "--output", shutil.copytree(begun, tmp_path / "run"))
    assert "could not be written" in line and "--resume" in line


def test_a_file_system_that_does_not_answer_ends_the_run(arguments, begun, tmp_path):
    """Opening a pipe for writing waits for someone who reads, as a write to a dead disk waits for the disk."""
    output = shutil.copytree(begun, tmp_path / "run")
    os.mkfifo(output / ".metrics.jsonl.partial")
    done = run_command(*arguments, "--output", output, "--write-timeout", 2, timeout=100)
    assert done.returncode == 2
    last = done.stderr.rstrip().splitlines()[-1]
    assert f"--output {output}: no answer from the file system for 2 s" in last and "--resume" in last


def test_the_time_limit_lets_pass_what_ends_in_time(monkeypatch):
    ended = []
    monkeypatch.setattr("ftjax.stall.os._exit", ended.append)
    with within(30, "x"):
        pass
    with pytest.raises(ValueError), within(30, "x"):
        raise ValueError
    assert threading.active_count() < 20 and not ended
    with within(0.01, "x"):
        time.sleep(0.2)
    assert ended == [2]


@pytest.fixture(scope="module")
def poisoned(tiny_bert, tmp_path_factory):
    """A model whose word embedding of "zebra" is NaN, and rows of which one has that word."""
    directory = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("poisoned") / "model")
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    word = (directory / "vocab.txt").read_text().splitlines().index("zebra")
    tensors[name][word] = np.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    rows = directory.parent / "rows.csv"
    with rows.open("w", newline="") as file:
        texts = [(f"a film of {number} words", number % 2) for number in range(47)] + [("a zebra", 1)]
        csv.writer(file).writerows([("text", "label"), *texts])
    return directory, rows


def test_a_step_that_is_not_finite_is_skipped_or_stops_the_run(poisoned, tmp_path, capsys):
    model, rows = poisoned
    common = ["train", "--model", model, "--train-file", rows, "--method", "partial", "--epochs", 2, "--batch-size", 16]
    common = [str(a) for a in (*common, "--buckets", 1, "--max-length", 64, "--log-every", 1, "--train-parameters", "head")]
    line = fail(capsys, *common, "--output", tmp_path / "stop")
    assert "the loss is nan" in line
    output = tmp_path / "skip"
    main([*common, "--output", str(output), "--nonfinite", "skip"])
    result = json.loads((output / "result.json").read_text())
    assert result["skipped_steps"] == 2 and result["steps"] == 6
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["skipped"]]
    assert len(lines) == 6 and len(skipped) == 2 and all("loss" not in line for line in skipped)
    assert all(np.isfinite(value).all() for name, value in model_of(output).items() if "word_embeddings" not in name)


def test_steps_that_are_never_finite_end_the_run(poisoned, tmp_path, monkeypatch, capsys):
    model, _ = poisoned
    monkeypatch.setattr(loop, "MOST_SKIPPED", 4)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"a zebra of {n} words,{n % 2}\n" for n in range(48)))
    common = ["train", "--model", model, "--train-file", rows, "--method", "partial", "--epochs", 2, "--batch-size", 16]
    common += ["--buckets", 1, "--max-length", 64, "--train-parameters", "head", "--output", tmp_path / "run"]
    line = fail(capsys, *common, "--nonfinite", "skip")
    assert "Step 4: neither loss nor gradient was finite in the last 4 steps; the checkpoint of step 3 is kept" in line


def test_a_skipped_step_changes_nothing_but_the_count(state):
    """Inside the compiled step: what was learnt, the optimizer's state and the metrics of other steps are untouched."""
    step = jax.jit(train_step)
    skipping = dataclasses.replace(state, skip_nonfinite=True)
    batch = random_batch()
    good, metrics = step(skipping, batch)
    assert any(not np.array_equal(value, state.trainable[name]) for name, value in good.trainable.items())
    assert float(metrics["skipped"][0]) == 0.0
    name = next(name for name in state.frozen if "word" in name)
    poisoned = dataclasses.replace(good, frozen={**good.frozen, name: good.frozen[name] * np.float32("nan")})
    after, metrics = step(poisoned, batch)
    assert int(after.step) == 2 and float(metrics["skipped"][0]) == 1.0
    assert all(float(total) == float(weight) == 0.0 for each, (total, weight) in metrics.items() if each != "skipped")
    for part in ("trainable", "optimizer_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(good, part))


def test_secrets_are_kept_out_of_what_is_written(monkeypatch, tmp_path, capsys):
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    texts = {
        f"login with {token} now": "login with *** now",
        "https://me:pass@example.org/data": "https://***@example.org/data",
        "--hub-token abc --seed 0": "--hub-token *** --seed 0",
        "--api-key=abc": "--api-key=***",
        "key 0123456789abcdef": "key ***",
        "--max-new-tokens 128 --augmentation token-dropout": None,
        "owner/name@main": None,
    }
    for text, clean in texts.items():
        assert redact(text) == (clean or text)
    rundir.write_json(tmp_path / "config.json", {"command": f"ftjax train --token {token}", "key": "0123456789abcdef"})
    assert json.loads((tmp_path / "config.json").read_text()) == {"command": "ftjax train --token ***", "key": "***"}
    assert "pass" not in fail(capsys, "predict", "--model", "https://me:pass@example.org/model", "text")


def test_what_a_file_brings_into_a_message_is_spelled_out():
    assert str(InputError("a\nb\x1b[31m\u2028c é 😀")) == "a\\nb\\x1b[31m\\u2028c é 😀"
    assert str(InputError("x" * 10**6 + " mend")).endswith(" mend") and len(str(InputError("x" * 10**6))) < 2000


def test_a_link_out_of_a_models_directory_is_not_followed(tiny_bert, tmp_path, capsys):
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model / "generation_config.json").symlink_to(secret)
    assert "generation_config.json: a link to" in fail(capsys, "predict", "--model", model, "text")
    snapshot = tmp_path / "models--a" / "snapshots" / "0"
    shutil.copytree(tiny_bert, snapshot)
    blobs = tmp_path / "models--a" / "blobs"
    blobs.mkdir()
    (snapshot / "config.json").rename(blobs / "1")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    main(["parameters", "--model", str(snapshot), "--json"])
    assert json.loads(capsys.readouterr().out)
