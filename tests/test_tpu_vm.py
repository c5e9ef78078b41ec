"""The scripts for TPU VMs, SLURM and GKE: what they say they would do is what they do, and shells and parsers take it."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "tpu_vm"))
import tpu

RUN = ("--", "train", "--model", "m", "--train-file", "a b.csv", "--train-parameters", "regex:bias$", "--output", "runs/a")
NEW = ["create", "scp", "ssh", "ssh", "ssh"]  # what a new VM takes
WHERE = ("--name", "a", "--zone", "us-west4-a")


def dry(capsys, *arguments):
    """The commands that --dry-run prints, split as a shell would."""
    step, *flags = arguments
    tpu.main([step, "--dry-run", *flags])
    return shlex.split(capsys.readouterr().out.replace("\ngcloud", " ; gcloud"))


def test_creating_a_spot_slice(capsys):
    found = dry(capsys, "create", *WHERE, "--accelerator-type", "v5litepod-16", "--spot", "--project", "p")
    head = ["gcloud", "compute", "tpus", "tpu-vm", "create", "a", "--accelerator-type", "v5litepod-16"]
    assert found[:8] == head
    assert "--spot" in found and found[-4:] == ["--zone", "us-west4-a", "--project", "p"]
    assert "--spot" not in dry(capsys, "create", *WHERE)


def test_the_run_starts_on_all_workers_with_its_arguments_as_they_were(capsys):
    found = dry(capsys, "start", *WHERE, *RUN)
    assert found[found.index("--worker") + 1] == "all"
    script = shlex.split(found[found.index("--command") + 1])
    assert script[:2] == ["sudo", "systemd-run"] and "TimeoutStopSec=25" in script
    assert script[-9:] == [*RUN[1:5], "a b.csv", "--train-parameters", "regex:bias$$", "--output", "runs/a"]  # $$: systemd's $


def test_after_preemption_everything_is_made_anew_and_the_run_goes_on(capsys):
    found = dry(capsys, "resume", *WHERE, "--accelerator-type", "v5litepod-8", "--spot", "--bucket", "b", *RUN)
    assert [found[i + 4] for i, word in enumerate(found) if word == "gcloud"] == [
        "delete",
        "create",
        "scp",
        "ssh",
        "ssh",
        "ssh",
    ]
    assert shlex.split(found[found.index("--zone", found.index("ssh")) - 1])
    assert "--resume" in shlex.split(found[-3])


@pytest.mark.parametrize("state, done", [("READY", ["ssh"]), ("PREEMPTED", ["delete", *NEW]), ("", NEW)])
def test_what_resuming_does_depends_on_the_vm(monkeypatch, state, done):
    monkeypatch.setattr(tpu, "state_of", lambda options: state)
    options = tpu.parser().parse_args(["resume", *WHERE, "--accelerator-type", "v5litepod-8"])
    options.command = ["train"]
    assert [command[4] for command in tpu.resume(options) if command[0] == "gcloud"] == done


def test_what_is_printed_is_what_is_run(tmp_path, monkeypatch, capfd):
    """A gcloud of ours notes its arguments; a step that fails ends the rest."""
    log = tmp_path / "log"
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {log}\necho >> {log}\n[ "$5" != b ]\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for step, flags in (("logs", []), ("fetch", ["runs/a"]), ("stop", []), ("delete", ["--yes"]), ("create", [])):
        log.unlink(missing_ok=True)
        tpu.main([step, *WHERE, *flags])
        ran = capfd.readouterr().err
        tpu.main([step, "--dry-run", *WHERE, *flags])
        assert capfd.readouterr().out == ran
        assert log.read_text().rstrip("\n").split("\0")[:-1] == shlex.split(ran)[1:]
    with pytest.raises(SystemExit) as failed:
        tpu.main(["create", "--name", "b", "--zone", "z"])
    assert failed.value.code == 1


def test_scripts_are_taken_by_a_shell(capsys):
    for step, flags in (("setup", ["--bucket", "b"]), ("setup", []), ("start", RUN), ("stop", [])):
        found = dry(capsys, step, *WHERE, *flags)
        scripts = [found[i + 1] for i, word in enumerate(found) if word == "--command"]
        assert scripts
        for script in scripts:
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    tpu.main(["slurm", "--dry-run", "--name", "a b", "--nodes", "2", "--sbatch=--gres=gpu:8", *RUN])
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --nodes=2\n" in script and "#SBATCH --gres=gpu:8\n" in script and "#SBATCH --signal=TERM@120\n" in script
    assert "'a b.csv'" in script and "--resume" in script and "scontrol requeue" in script


@pytest.mark.parametrize(
    "topology, hosts, chips, accelerator",
    [
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v5p:2x2x2", 2, 4, "tpu-v5p-slice"),
    ],
)
def test_a_manifest_has_a_pod_a_host_and_all_its_chips(capsys, topology, hosts, chips, accelerator):
    run = [*RUN[:-1], f"{tpu.BUCKET}/runs/a"]
    tpu.main(["gke", "--dry-run", "--name", "a", "--topology", topology, "--image", "i", "--bucket", "b", "--spot", *run])
    printed = capsys.readouterr()
    assert "--train-file a b.csv: must be in the image's working directory" in printed.err
    job = json.loads(printed.out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    assert container["command"] == ["ftjax", *run[1:], "--resume"]


def test_mistakes_are_said(capsys):
    job = ("gke", "--name", "a", "--image", "i", "--bucket", "b")
    for arguments, said in (
        (["start", *WHERE], "after --"),
        (["start", *WHERE, "--", "trian"], "trian: ftjax is to do one of train"),
        (["create", *WHERE, *RUN], "needs start"),
        (["create", "--name", "a"], "--zone"),
        (["create", *WHERE, "--accelerator-type", "v5litepd-8"], "v5litepd-8: not a name such as v5litepod-8"),
        (["resume", *WHERE, *RUN], "--accelerator-type"),
        ([*job, "--topology", "v9:1", *RUN], "v5e:4x4"),
        ([*job, "--topology", "v5e:2x5", *RUN[:-2]], "10 chips"),
        ([*job, *RUN], "--output runs/a: is lost with the pod"),
    ):
        with pytest.raises(SystemExit) as stopped:
            tpu.main(arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as stopped:
        tpu.main(["slurm", "--name", "a", *RUN])
    assert stopped.value.code == 2 and "sbatch is not on this machine" in capsys.readouterr().err
