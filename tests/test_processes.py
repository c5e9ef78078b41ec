"""Several real processes on the loopback interface share a run and end where one process does."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import FAST_COMPILE, ROOT, fail
from safetensors.numpy import load_file
from test_resume import content, logged

from ftjax.processes import CHATTER, lost, on_cluster

TINY = ("--batch-size", "16", "--max-length", "16", "--buckets", "1", "--learning-rate", "1e-3", "--seed", "1", "--resume")


def environment(devices):
    flags = f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(number, devices, *arguments, absent=()):
    """That many processes of `ftjax train` with as many devices each, but for those that are absent."""
    address = free_address()
    command = [sys.executable, "-m", "ftjax.cli", "train", *map(str, arguments), *TINY]
    found = []
    for index in set(range(number)) - set(absent):
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


def last_words(running):
    """The last line of each, once all have ended in one line without a stack trace."""
    try:
        texts = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [2] * len(running), texts
    assert not any("stack trace" in text or "Traceback" in text for text in texts), texts
    return [text.splitlines()[-1] for text in texts]


def result(directory):
    return json.loads((directory / "result.json").read_text()), load_file(directory / "model" / "model.safetensors")


def assert_close(directory, expected, weights):
    found, model = result(directory)
    assert found["steps"] == expected["steps"]
    for score in ("loss", "accuracy", "macro_f1", "matthews"):
        assert found["eval"][score] == pytest.approx(expected["eval"][score], rel=1e-4, abs=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(model[name], value, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tiny_bert, few_reviews, tmp_path_factory):
    """The run in one process of one device: its flags but for the output, its result and its model."""
    output = tmp_path_factory.mktemp("alone") / "run"
    flags = ("--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--json")
    flags += ("--epochs", "1")
    finish(start(1, 1, *flags, "--output", output))
    return flags, *result(output)


@pytest.mark.long
def test_two_processes_end_where_one_does(alone, tmp_path):
    flags, expected, weights = alone
    texts = finish(start(2, 2, *flags, "--mesh", "fsdp=4", "--output", tmp_path / "run"))
    assert_close(tmp_path / "run", expected, weights)
    assert json.loads(texts[0][0])["eval"] == result(tmp_path / "run")[0]["eval"]
    assert texts[1][0] == "" and "rows" not in texts[1][1]  # the first alone speaks
    assert "Mesh: fsdp=4." in texts[0][1]


@pytest.mark.long
def test_four_processes_end_where_one_does(alone, tmp_path):
    flags, expected, weights = alone
    texts = finish(start(4, 1, *flags, "--mesh", "data=2,fsdp=2", "--output", tmp_path / "run"))
    assert_close(tmp_path / "run", expected, weights)
    assert "Mesh: data=2,fsdp=2." in texts[0][1]


@pytest.mark.long
def test_texts_that_share_rows_are_learnt_and_scored_alike_by_two_processes(alone, tmp_path):
    flags = (*alone[0], "--packing")
    finish(start(1, 1, *flags, "--output", tmp_path / "one"))
    finish(start(2, 1, *flags, "--mesh", "data=2", "--output", tmp_path / "two"))
    assert_close(tmp_path / "two", *result(tmp_path / "one"))


@pytest.mark.long
def test_words_are_left_out_and_put_back_alike_by_two_processes(alone, tmp_path):
    flags, expected, weights = alone
    finish(start(2, 2, *flags, "--vocabulary", "seen", "--mesh", "fsdp=4", "--output", tmp_path / "run"))
    assert_close(tmp_path / "run", expected, weights)


@pytest.mark.long
@pytest.mark.parametrize("absent", [0, 2])
def test_the_others_end_in_a_line_that_names_who_did_not_come(alone, tmp_path, absent):
    running = start(3, 1, *alone[0], "--process-timeout", "30", "--output", tmp_path / "run", absent=[absent])
    said = r"process 0 did not answer at 127.0.0.1:\d+" if absent == 0 else "process 2 did not come"
    assert all(re.match(f"ftjax: {said} within 30 s", line) for line in last_words(running))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_process_that_is_killed_is_named_and_all_go_on_to_the_same_bytes(alone, tmp_path):
    flags = (*alone[0][:-1], "6", "--mesh", "fsdp=4", "--save-every", "3", "--log-every", "1", "--process-timeout", "30")
    finish(start(2, 2, *flags, "--output", tmp_path / "whole"))
    output = tmp_path / "killed"
    for killed, step in ((1, 5), (0, 14)):
        running = start(2, 2, *flags, "--output", output)
        deadline = time.monotonic() + 200
        while not logged(output, step)() and time.monotonic() < deadline and running[0].poll() is None:
            time.sleep(0.002)
        running[killed].kill()
        (line,) = last_words([running[1 - killed]])
        assert line.startswith(f"ftjax: process {killed} is lost: ") and "--resume" in line
        running[killed].communicate()
        assert not (output / "result.json").exists()
    texts = finish(start(2, 2, *flags, "--output", output))
    assert "Resuming after step" in texts[0][1]
    assert content(output) == content(tmp_path / "whole")


READ = """
import sys
from pathlib import Path
import jax
from ftjax import prepare, shares
from ftjax.config import TrainConfig
from ftjax.data import tables

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
read, of_lines = [], tables.part_of_lines
tables.part_of_lines = lambda *a, **k: read.append(of_lines(*a, **k)) or read[-1]
config = TrainConfig(model=sys.argv[3], train_file=Path(sys.argv[4]), output=Path(sys.argv[5]), max_length=32)
with shares.directory(config.output) as directory:
    data = prepare.prepare_data(config, print, (), directory)
    last = data.train.tokens[data.train.at(len(data.train) - 1)]
    print(len(read[0]), len(data.train), data.train.labels.tolist(), last.tolist())
"""


@pytest.mark.long
def test_each_process_reads_its_part_of_the_file_and_knows_of_all_rows(tiny_bert, few_reviews, tmp_path):
    command = [sys.executable, "-c", READ, free_address()]
    more = [tiny_bert, few_reviews["train"], tmp_path / "run"]
    command = [[*map(str, (*command, i, *more))] for i in range(2)]
    texts = finish([subprocess.Popen(each, env=environment(1), stdout=-1, stderr=-1, text=True) for each in command])
    (source, first), (other, second) = (CHATTER.sub(b"", text.encode()).decode().splitlines() for text, _ in texts)
    assert source == other and "60 rows" in source
    sizes = [int(line.split()[0]) for line in (first, second)]
    header, size = len("text,label\r\n"), few_reviews["train"].stat().st_size
    assert size <= sum(sizes) <= size + header and max(sizes) < 0.55 * size
    assert first.split()[1:] == second.split()[1:] and first.split()[1] == "60"


@pytest.mark.long
def test_what_is_wrong_in_one_part_is_said_by_all_with_the_row_of_the_file(alone, few_reviews, tmp_path):
    with few_reviews["train"].open(newline="") as file:
        rows = list(csv.reader(file))
    rows[41][1] = ""  # of the header and 60 rows: in the second part
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    flags = [tmp_path / "a.csv" if flag == few_reviews["train"] else flag for flag in alone[0]]
    for line in last_words(start(2, 1, *flags, "--output", tmp_path / "run")):
        assert "a.csv: 1 of 60 rows have no label, the first is row 41; " in line
    assert not (tmp_path / "run").exists()


PARTS = """
import sys
import jax
import numpy as np
from ftjax.processes import kept_by_first
from ftjax.sharding import make_mesh
from jax.sharding import NamedSharding, PartitionSpec

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
whole = {name: np.arange(64.0).reshape(16, 4) + i for i, name in enumerate("abc")}
sharding = NamedSharding(make_mesh({"fsdp": 2}), PartitionSpec("fsdp"))
cut = {name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__) for name, value in whole.items()}
found = kept_by_first(cut.items())
expected = whole if sys.argv[2] == "0" else {}
assert found.keys() == expected.keys() and all(np.array_equal(found[name], value) for name, value in expected.items())
"""


@pytest.mark.long
def test_the_first_process_alone_keeps_the_whole_model():
    address = free_address()
    command = [sys.executable, "-c", PARTS, address]
    running = [subprocess.Popen([*command, str(i)], env=environment(1), stdout=-1, stderr=-1, text=True) for i in range(2)]
    finish(running)


def test_what_the_runtime_says_becomes_a_line():
    late = (
        "DEADLINE_EXCEEDED: Barrier timed out. # of tasks that reached the barrier: 2/4. The first task at the barrier: {0}0."
    )
    late += " Some timed out task names:\n{0}2\n{0}3\n\n\nRPC: /xla.coordination.CoordinationService/RegisterTask"
    for prefix in ("", "/job:jax_worker/replica:0/task:"):
        assert lost(late.format(prefix), 9).startswith("process 2, 3 did not come within 9 s")
        ended = "INTERNAL: Shutdown barrier has failed.\nBarrier result: '" + late.format(prefix)
        assert lost(ended, 9).startswith("process 0 ended before the others")
        gone = f"UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n{prefix}1\n{prefix}12\nThe tasks"
        assert lost(gone, 9).startswith("process 1, 12 is lost: nothing was heard of it for 9 s")
    assert lost("UNAVAILABLE: Either the leader task was preempted", 9).startswith("process 0 is lost")
    assert lost("DEADLINE_EXCEEDED: connection refused", 9).startswith("process 0 did not answer within 9 s")
    assert lost("DEADLINE_EXCEEDED: no", 9, "a:1").startswith("process 0 did not answer at a:1 within 9 s")
    told = b"[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\nE0000 lost\n"
    assert CHATTER.sub(b"", told) == b"E0000 lost\n"


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
