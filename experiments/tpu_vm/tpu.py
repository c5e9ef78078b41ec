"""ftjax on TPU VMs: create them, set them up, start a run on all workers, follow it, resume it after preemption, delete them.

    python experiments/tpu_vm/tpu.py create --name a --zone us-west4-a --accelerator-type v5litepod-8 --spot --dry-run
    python experiments/tpu_vm/tpu.py setup  --name a --zone us-west4-a --bucket my-bucket
    python experiments/tpu_vm/tpu.py start  --name a --zone us-west4-a -- train --model ... --output /home/ftjax/bucket/runs/a
    python experiments/tpu_vm/tpu.py logs   --name a --zone us-west4-a
    python experiments/tpu_vm/tpu.py resume --name a --zone us-west4-a --spot --bucket my-bucket -- train ...
                                                                   # the VM was taken away: a new one goes on with the run
    python experiments/tpu_vm/tpu.py fetch  --name a --zone us-west4-a --bucket my-bucket runs/a
    python experiments/tpu_vm/tpu.py delete --name a --zone us-west4-a
    python experiments/tpu_vm/tpu.py slurm  --name a --nodes 2 -- train ...         # the same run as a SLURM job
    python experiments/tpu_vm/tpu.py gke    --name a --topology v5e:4x4 --image I --bucket my-bucket -- train ...

Nothing but Python and `gcloud` (`sbatch`, `kubectl`) is needed. --dry-run prints the commands, ready to be pasted into a
shell, or the job's file, and does nothing.
docs/tpu_vm.md goes through it step by step.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

UNIT, MOUNT = "ftjax", "ftjax-bucket"  # services of the VM: the run, and its bucket
HOME = "/home/ftjax"  # the same on every worker, whoever logs in
BUCKET = f"{HOME}/bucket"
ARCHIVE = "ftjax.tar.gz"
GRACE = 25  # seconds to save in: a spot VM goes 30 s after its notice
CHIPS = {  # of ftjax plan: GKE's name of the accelerator, chips a host of a slice of several hosts
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
GCSFUSE = """
apt=https://packages.cloud.google.com/apt
echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $apt gcsfuse-$(lsb_release -cs) main" \
  | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
curl -fsS $apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
mkdir -p {place}
systemctl is-active --quiet {unit} || sudo systemd-run --unit {unit} --collect --uid $(id -u) \
  gcsfuse --foreground --implicit-dirs --rename-dir-limit 100000 {bucket} {place}
"""
"""The bucket as a directory, by a service: it then stays until the run's own service has saved and ended."""

Command = list[str]


def tpu_vm(options: argparse.Namespace, *words: str) -> Command:
    """A command of gcloud about this TPU VM."""
    project = ["--project", options.project] if options.project else []
    return ["gcloud", "compute", "tpus", "tpu-vm", words[0], *words[1:], "--zone", options.zone, *project]


def on_workers(options: argparse.Namespace, script: str, worker: str = "all") -> Command:
    """A command that runs a script on workers."""
    return tpu_vm(options, "ssh", options.name, "--worker", worker, "--command", script.strip())


def create(options: argparse.Namespace) -> list[Command]:
    """Ask for the VM, or for all VMs of a slice."""
    kind = ["--accelerator-type", options.accelerator_type, "--version", options.runtime_version]
    spot = ["--spot"] if options.spot else []
    return [tpu_vm(options, "create", options.name, *kind, *spot, "--scopes", "cloud-platform")]


def setup(options: argparse.Namespace) -> list[Command]:
    """Put this repository, as committed, and what it needs on every worker; mount the bucket."""
    install = f"""
set -e
sudo mkdir -p {HOME} && sudo chown "$(id -u)" {HOME} && cd {HOME}
tar -xzf ~/{ARCHIVE}
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv --require-hashes -r requirements/lock.txt
~/.local/bin/uv pip install --quiet --python .venv 'jax[tpu]'
~/.local/bin/uv pip install --quiet --python .venv --no-deps --editable .
"""
    mount = GCSFUSE.strip().format(place=BUCKET, unit=MOUNT, bucket=shlex.quote(options.bucket or ""))
    return [
        ["git", "archive", "--format", "tar.gz", "--output", ARCHIVE, "HEAD"],
        tpu_vm(options, "scp", ARCHIVE, f"{options.name}:", "--worker", "all"),
        on_workers(options, install + (mount if options.bucket else "")),
        on_workers(options, f"{HOME}/.venv/bin/ftjax doctor"),  # on all at once: the chips of a slice start together
    ]


def start(options: argparse.Namespace) -> list[Command]:
    """Start the run on every worker, as a service: it gets SIGTERM, and time to save, when the VM is taken away."""
    words = [f"{HOME}/.venv/bin/ftjax", *options.command]
    service = {"After": f"{MOUNT}.service", "WorkingDirectory": HOME, "TimeoutStopSec": GRACE}
    properties = " ".join(f"--property {name}={value}" for name, value in service.items())
    run = shlex.join(words).replace("$", "$$")  # of systemd, which fills in variables
    return [on_workers(options, f"sudo systemd-run --unit {UNIT} --collect --uid $(id -u) {properties} {run}")]


def stop(options: argparse.Namespace) -> list[Command]:
    """Let the run save and end (exit code 75)."""
    return [on_workers(options, f"sudo systemctl stop {UNIT}")]


def logs(options: argparse.Namespace) -> list[Command]:
    """Follow what a worker prints."""
    return [on_workers(options, f"journalctl --unit {UNIT} --output cat --follow --lines 100", worker=options.worker)]


def fetch(options: argparse.Namespace) -> list[Command]:
    """Copy a run's directory here: from the bucket, or from worker 0."""
    if options.bucket:
        return [["gcloud", "storage", "rsync", "--recursive", f"gs://{options.bucket}/{options.path}", options.to]]
    return [tpu_vm(options, "scp", "--recurse", f"{options.name}:{options.path}", options.to, "--worker", "0")]


def delete(options: argparse.Namespace) -> list[Command]:
    """Give the VM back; what is on its disks is gone."""
    return [tpu_vm(options, "delete", options.name, *(["--quiet"] if options.yes else []))]


def resume(options: argparse.Namespace) -> list[Command]:
    """Go on with the run: on the VM if it is there, on a new one if it was preempted. A preempted VM cannot be restarted."""
    options.command = [*options.command, *([] if "--resume" in options.command else ["--resume"])]
    options.yes = True
    state = state_of(options)
    if state == "READY":
        return start(options)
    gone = delete(options) if state else []
    return [*gone, *create(options), *setup(options), *start(options)]


def state_of(options: argparse.Namespace) -> str:
    """READY, PREEMPTED and the like; an empty string where there is no such VM."""
    if options.dry_run:
        return "PREEMPTED"
    command = tpu_vm(options, "describe", options.name, "--format", "value(state)")
    return run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


def slurm(options: argparse.Namespace) -> str:
    """Submit a batch script: one task a node; SIGTERM two minutes before the end; the job queues again once it has saved."""
    more = "".join(f"#SBATCH {line}\n" for line in options.sbatch)
    command = [*options.command, *([] if "--resume" in options.command else ["--resume"])]
    return f"""#!/bin/bash
#SBATCH --job-name={shlex.quote(options.name)}
#SBATCH --nodes={options.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --time={options.time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
{more}
# ftjax finds the other nodes by SLURM's variables. 75: stopped by the signal, with its state saved.
srun --kill-on-bad-exit=0 {shlex.quote(options.ftjax)} {shlex.join(command)}
status=$?
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def gke(options: argparse.Namespace) -> str:
    """Apply a JobSet, one pod a host of the slice, started again as a whole after preemption. (JSON is YAML too.)"""
    generation, _, shape = options.topology.partition(":")
    sizes = shape.split("x")
    if generation not in CHIPS or not all(size.isdecimal() and int(size) for size in sizes):
        refuse(f"--topology {options.topology}: must be one of {', '.join(CHIPS)} and a size, such as v5e:4x4.")
    check_paths(options.command)
    accelerator, per_host = CHIPS[generation]
    chips = math.prod(map(int, sizes))
    hosts = 1 if chips <= 8 and generation in ("v5e", "v6e") else max(1, chips // per_host)
    if generation in ("v5e", "v6e") and chips & (chips - 1):
        refuse(f"--topology {options.topology}: {chips} chips; slices of {generation} have 1, 2, 4, 8, 16, ... of them.")
    command = ["ftjax", *options.command, *([] if "--resume" in options.command else ["--resume"])]
    spot = {"cloud.google.com/gke-spot": "true"} if options.spot else {}
    pod = {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE,
            "serviceAccountName": options.service_account,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": accelerator,
                "cloud.google.com/gke-tpu-topology": shape,
                **spot,
            },
            "containers": [
                {
                    "name": UNIT,
                    "image": options.image,
                    "command": command,
                    "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
                    "resources": {"limits": {"google.com/tpu": chips // hosts}},
                    "volumeMounts": [{"name": "bucket", "mountPath": BUCKET}],
                }
            ],
            "volumes": [
                {
                    "name": "bucket",
                    "csi": {
                        "driver": "gcsfuse.csi.storage.gke.io",
                        "volumeAttributes": {
                            "bucketName": options.bucket,
                            "mountOptions": "implicit-dirs,rename-dir-limit=100000",
                        },
                    },
                }
            ],
        },
    }
    job = {"parallelism": hosts, "completions": hosts, "backoffLimit": 0, "template": pod}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


STEPS: dict[str, Callable[[argparse.Namespace], list[Command]]] = {
    f.__name__: f for f in (create, setup, start, stop, logs, fetch, resume, delete)
}
TEXTS: dict[str, Callable[[argparse.Namespace], str]] = {f.__name__: f for f in (slurm, gke)}
TAKERS = {"slurm": ["sbatch"], "gke": ["kubectl", "apply", "--filename", "-"]}
"""Who takes those texts, on its stdin."""
RUNS = ("start", "resume", "slurm", "gke")  # commands that are told what ftjax shall do, after --


def accelerator_type(text: str) -> str:
    """What `gcloud` calls a number of chips of a version."""
    if not re.fullmatch(r"(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text}: not a name such as v5litepod-8 (of v5e), v5p-16 or v6e-8")
    return text


def refuse(why: str) -> NoReturn:
    """Say what is wrong in one line and end, exit 2."""
    print(f"tpu.py: {why}", file=sys.stderr)
    raise SystemExit(2)


def run(command: Command, **options: Any) -> subprocess.CompletedProcess:
    """Run a program; exit 2 where it is not installed."""
    try:
        return subprocess.run(command, check=False, **options)
    except FileNotFoundError:
        refuse(f"{command[0]} is not on this machine; go where it is, or take --dry-run to see what it would be told.")


def check_run(words: Command) -> None:
    """Exit 2 unless ftjax knows the command that it shall do; its flags it checks itself, on the VM."""
    if words[0] not in (known := ("train", "compare", "evaluate", "predict", "zero-shot", "benchmark", "doctor")):
        refuse(f"-- {words[0]}: ftjax is to do one of {', '.join(known)}.")


def check_paths(words: Command) -> None:
    """Exit 2 where a run in a container would write to no bucket; say which of the files it reads must be in the image."""
    given = [word.split("=", 1) if "=" in word else [word, after] for word, after in zip(words, [*words[1:], ""], strict=True)]
    for flag, path in given:
        if flag == "--output" and not path.startswith(f"{BUCKET}/"):
            refuse(f"--output {path}: is lost with the pod; take a directory of the bucket, such as {BUCKET}/runs/a.")
        if flag.startswith("--") and flag.endswith("-file") and not path.startswith("/"):
            told = f"{flag} {path}: must be in the image's working directory; a file of the bucket is {BUCKET}/{path}"
            print(f"tpu.py: {told}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The flags of every command."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = found.add_subparsers(dest="step", required=True, metavar="COMMAND")
    for name, step in {**STEPS, **TEXTS}.items():
        each = commands.add_parser(name, help=step.__doc__, description=step.__doc__)
        each.add_argument("--name", required=True, help="of the TPU VM, or the job")
        if name in STEPS:
            each.add_argument("--zone", required=True, help="such as us-west4-a")
            each.add_argument("--project", help="default: gcloud's own")
        each.add_argument("--dry-run", action="store_true", help="print what would be done and do nothing")
        if name in ("create", "resume"):
            kind = {"default": "v5litepod-8"} if name == "create" else {"required": True}  # a new VM must be as the old one was
            each.add_argument("--accelerator-type", type=accelerator_type, help="such as v5litepod-8 or v5litepod-16", **kind)
            each.add_argument("--runtime-version", default="v2-alpha-tpuv5-lite", help="the VM's software")
        if name in ("create", "resume", "gke"):
            each.add_argument("--spot", action="store_true", help="cheaper; may be taken away at any time")
        if name in ("setup", "fetch", "resume"):
            each.add_argument("--bucket", help=f"Cloud Storage bucket that outlives the VM, at {BUCKET}")
        if name == "logs":
            each.add_argument("--worker", default="0", help="a number, or all")
        if name == "fetch":
            each.add_argument("path", help=f"of the run: in the bucket, or on the VM, such as {HOME}/runs/a")
            each.add_argument("--to", default=".", help="a directory here")
        if name == "delete":
            each.add_argument("--yes", action="store_true", help="do not ask")
    job = commands.choices["slurm"]
    job.add_argument("--nodes", type=int, default=1)
    job.add_argument("--time", default="24:00:00")
    job.add_argument("--ftjax", default=".venv/bin/ftjax", help="the program, on the nodes")
    job.add_argument("--sbatch", action="append", default=[], help="one more line, such as --sbatch=--gres=gpu:8")
    job = commands.choices["gke"]
    job.add_argument("--topology", default="v5e:2x4", help="as in ftjax plan")
    job.add_argument("--image", required=True, help="a container with ftjax[tpu]")
    job.add_argument("--bucket", required=True, help=f"Cloud Storage bucket, at {BUCKET}")
    job.add_argument("--service-account", default="default", help="may read and write the bucket")
    job.add_argument("--restarts", type=int, default=100)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Do, or with --dry-run print, one command."""
    words = sys.argv[1:] if arguments is None else arguments
    cut = words.index("--") if "--" in words else len(words)
    flags = parser()
    options = flags.parse_args(words[:cut])
    options.command = words[cut + 1 :]
    if (options.step in RUNS) != bool(options.command):
        flags.error("say what ftjax shall do after --, such as: -- train ..." if options.step in RUNS else "-- needs start")
    if options.command:
        check_run(options.command)
    if options.step in TEXTS:
        text = TEXTS[options.step](options)
        if options.dry_run:
            sys.stdout.write(text)
            return
        sys.exit(run(TAKERS[options.step], input=text, text=True).returncode)
    for command in STEPS[options.step](options):
        print(shlex.join(command), file=sys.stdout if options.dry_run else sys.stderr, flush=True)
        if not options.dry_run and (code := run(command).returncode):
            sys.exit(code)


if __name__ == "__main__":
    main()
