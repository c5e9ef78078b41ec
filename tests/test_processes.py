"""Several real processes on the loopback interface share a run and end where one process does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import FAST_COMPILE, ROOT, fail
from safetensors.numpy import load_file

from ftjax.processes import missing, on_cluster

TINY = ("--batch-size", "16", "--max-length", "16", "--buckets", "1", "--epochs", "1", "--learning-rate", "1e-3", "--seed", "1")


def environment(devices):
    flags = f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(number, devices, *arguments):
    """That many processes of `ftjax train` with as many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "ftjax.cli", "train", *map(str, arguments), *TINY]
    found = []
    for index in range(number):
        join = ("--coordinator-address", address, "--process-count", str(number), "--process-index", str(index))
        found.append(
            subprocess.Popen(
                [*command, *(join if number > 1 else ())],
                env=environment(devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def finish(running):
    """(stdout, stderr) of each, once all have ended well."""
    try:
        texts = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), texts[0][1] + texts[-1][1]
    return texts


def result(directory):
    return json.loads((directory / "result.json").read_text()), load_file(directory / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tiny_bert, few_reviews, tmp_path_factory):
    """The run in one process of one device: its flags but for the output, its result and its model."""
    output = tmp_path_factory.mktemp("alone") / "run"
    flags = ("--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--json")
    finish(start(1, 1, *flags, "--output", output))
    return flags, *result(output)


@pytest.mark.long
def test_two_processes_end_where_one_does(alone, tmp_path):
    flags, expected, weights = alone
    texts = finish(start(2, 2, *flags, "--mesh", "fsdp=4", "--output", tmp_path / "run"))
    found, model = result(tmp_path / "run")
    for split in ("loss", "accuracy", "macro_f1", "matthews"):
        assert found["eval"][split] == pytest.approx(expected["eval"][split], rel=1e-4, abs=1e-5)
    assert found["steps"] == expected["steps"]
    for name, value in weights.items():
        np.testing.assert_allclose(model[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    assert json.loads(texts[0][0])["eval"] == found["eval"]
    assert texts[1][0] == "" and "rows" not in texts[1][1]  # the first alone speaks
    assert "Mesh: fsdp=4." in texts[0][1]


@pytest.mark.long
def test_a_process_that_does_not_come_ends_the_others_in_one_line(alone, tmp_path):
    first, second = start(2, 1, *alone[0], "--process-timeout", "3", "--output", tmp_path / "run")
    second.kill()
    second.communicate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 2, said
    assert "ftjax: not all other processes came within 3 s" in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_what_the_runtime_says_becomes_a_line():
    late = "DEADLINE_EXCEEDED: Barrier timed out. # of tasks that reached the barrier: 2/4. The first task at the barrier: "
    late += "/job:jax_worker/replica:0/task:0. Some timed out task names:\n"
    late += "/job:jax_worker/replica:0/task:2\n/job:jax_worker/replica:0/task:3"
    assert missing(late, 9).startswith("process 2, 3 did not come within 9 s")
    assert missing("DEADLINE_EXCEEDED: connection refused", 9).startswith("process 0 did not answer within 9 s")


def test_clusters_are_told_by_their_environment(monkeypatch):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert on_cluster({**slurm, "SLURM_NTASKS": "2"})
    assert not on_cluster({**slurm, "SLURM_NTASKS": "1"})
    assert on_cluster({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"})
    assert not on_cluster({"TPU_WORKER_HOSTNAMES": "a", "TPU_SKIP_MDS_QUERY": "1"})


def test_flags_that_do_not_go_together(capsys, tiny_bert, few_reviews, tmp_path):
    base = ("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--output", tmp_path / "run")
    assert "give all three or none" in fail(capsys, *base, "--process-count", "2")
    three = ("--coordinator-address", "here:1", "--process-count", "2", "--process-index", "2")
    assert "from 0 to --process-count - 1" in fail(capsys, *base, *three)
    assert "HOST:PORT" in fail(capsys, *base, "--coordinator-address", "here", "--process-count", "2", "--process-index", "0")
    assert "data axis alone" in fail(capsys, *base, "--parallel", "pmap", "--mesh", "fsdp=8", "--batch-size", "16")
    assert "Did you mean 'fsdp'" in fail(capsys, *base, "--mesh", "fdsp=8")
