"""The whole review run, ftjax and PyTorch in turn on the same machine: training time and test accuracy, side by side.

    python experiments/against_torch.py --torch-python .venv-parity/bin/python --output runs/against-torch

Nothing else should run meanwhile. Every run is a process of its own; what is finished is not done twice. PyTorch's side
is the Hugging Face Trainer with its defaults (experiments/torch_reviews.py; requirements/parity.txt in that Python).
ftjax runs twice, first without any compiled program at hand, then with those of the first time. Training time counts
compilation and frozen prefixes; on both sides evaluation and start-up are apart, and `whole` is the whole process.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ftjax.demo import reviews


@dataclasses.dataclass(frozen=True)
class Run:
    """What trains and how. torch, ours: the precisions of each side; more: flags that ftjax alone has."""

    spec: str
    epochs: int
    rate: str
    torch: tuple[str, ...] = ("float32",)
    ours: tuple[str, ...] = ("float32", "bfloat16")
    more: tuple[str, ...] = ()


RUNS = {
    "full": Run("all", 2, "5e-5", torch=("float32", "bfloat16")),
    "packed": Run(
        "all", 2, "5e-5", torch=("float32", "bfloat16"), ours=("bfloat16",), more=("--packing", "--vocabulary", "seen")
    ),
    "last:2,head": Run("last:2,head", 5, "5e-5"),
    "head": Run("head", 5, "3e-3"),
}
PRECISIONS = ("float32", "bfloat16")


def timed(command: list, log: Path, **options) -> float:
    """Seconds that a command takes; its output goes to a file."""
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        subprocess.run([str(part) for part in command], check=True, stdout=file, stderr=subprocess.STDOUT, **options)
    return time.perf_counter() - start


def ours(name: str, precision: str, seed: int, start: str, files: dict[str, Path], output: Path) -> dict:
    """{"train_seconds", "whole_seconds", "accuracy"} of ftjax. start: cold, or warm with programs compiled before."""
    run = RUNS[name]
    found, programs = output / f"{name}-{precision}-{seed}-{start}.json", output / f"programs-{name}-{precision}"
    if not found.exists():
        if start == "cold":
            shutil.rmtree(programs, ignore_errors=True)
        directory = found.with_suffix("")
        shutil.rmtree(directory, ignore_errors=True)
        method = ("full",) if run.spec == "all" else ("partial", "--train-parameters", run.spec)
        command = [
            *(sys.executable, "-m", "ftjax", "train", "--method", *method, "--model", reviews.model_dir()),
            *("--train-file", files["train"], "--test-file", files["test"], "--output", directory),
            *("--epochs", run.epochs, "--learning-rate", run.rate, "--seed", seed, "--precision", precision, *run.more),
        ]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(programs)}
        whole = timed(command, found.with_suffix(".log"), env=environment)
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        write(found, result["train_seconds"], whole, result["test"]["accuracy"], result["seconds"])
    return json.loads(found.read_text(encoding="utf-8"))


def theirs(name: str, precision: str, seed: int, files: dict[str, Path], output: Path, python: str) -> dict:
    """The same of PyTorch."""
    run = RUNS[name]
    found = output / f"torch-{run.spec}-{precision}-{seed}.json"
    if not found.exists():
        result = found.with_suffix(".result")
        script = Path(__file__).with_name("torch_reviews.py")
        command = [python, script, files["train"], files["test"], run.spec, seed, run.epochs, run.rate, result, precision]
        whole = timed(command, found.with_suffix(".log"))
        measured = json.loads(result.read_text(encoding="utf-8"))
        write(found, measured["train_seconds"], whole, measured["accuracy"], {})
    return json.loads(found.read_text(encoding="utf-8"))


def write(path: Path, train: float, whole: float, accuracy: float, seconds: dict) -> None:
    """Keep a measurement."""
    kept = {"train_seconds": train, "whole_seconds": whole, "accuracy": accuracy, "seconds": seconds}
    path.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/against-torch"))
    parser.add_argument("--torch-python", required=True, help="a Python with requirements/parity.txt")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = reviews.write(Path("data/reviews"))
    print("| run | precision | training time | whole process | test accuracy | against PyTorch float32 | bfloat16 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.runs:
        torch = {p: theirs(name, p, options.seed, files, options.output, options.torch_python) for p in RUNS[name].torch}
        rows = [(f"PyTorch, {p}", found) for p, found in torch.items()]
        for precision in RUNS[name].ours:
            for start in ("cold", "warm"):
                rows.append((f"{precision}, {start}", ours(name, precision, options.seed, start, files, options.output)))
        for label, found in rows:
            ratios = [f"{torch[p]['train_seconds'] / found['train_seconds']:.2f}" if p in torch else "–" for p in PRECISIONS]
            times = f"{found['train_seconds']:.1f} s | {found['whole_seconds']:.1f} s | {found['accuracy']:.4f}"
            print(f"| `{name}` | {label} | {times} | {' | '.join(ratios)} |", flush=True)
