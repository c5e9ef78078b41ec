"""What each choice of --train-parameters costs and reaches on the review sentences: a table, and an accuracy-cost plot.

    python experiments/partial_cost.py --output runs/partial-cost            # all choices, seeds 0 to 4
    python experiments/partial_cost.py --output runs/partial-cost --torch    # PyTorch beside it (requirements/parity.txt)

Every run is a process of its own (`ftjax train`), one after the other; what is finished is not done twice. Seeds share
compiled programs and the output of frozen layers, as a user's sweep would: the first seed's times count both in full.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from ftjax.demo import reviews

CHOICES = {  # spec: peak learning rate; larger the less is trained, the same for ftjax and PyTorch, not tuned further
    "all": 1e-4,
    "last:4,head": 1e-4,
    "last:2,head": 3e-4,
    "last:1,head": 3e-4,
    "head": 3e-3,
    "bias,head": 1e-3,
    "layernorm,head": 1e-3,
    "lora:8,head": 1e-3,
}


def run(spec: str, seed: int, files: dict[str, Path], options: argparse.Namespace) -> dict:
    """One run's result.json."""
    output = options.output / f"{spec.replace(':', '-').replace(',', '+')}-seed{seed}"
    if not (output / "result.json").exists():
        method = ("full",) if spec == "all" else ("partial", "--train-parameters", spec)
        command = [
            *(sys.executable, "-m", "ftjax", "train", "--method", *method, "--model", reviews.model_dir()),
            *("--train-file", files["train"], "--test-file", files["test"], "--output", output, "--resume"),
            *("--epochs", options.epochs, "--learning-rate", CHOICES[spec], "--seed", seed, "--precision", options.precision),
            *("--prefix-cache", "disk", "--prefix-cache-dir", options.output / "prefix-cache"),
        ]
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(options.output / "xla-cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        subprocess.run([str(part) for part in command], check=True, env={**os.environ, **cache})
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


def run_torch(spec: str, seed: int, files: dict[str, Path], options: argparse.Namespace) -> dict | None:
    """The same choice with PyTorch and the Hugging Face Trainer, or None for what those have no plain counterpart of."""
    if spec.startswith("lora"):
        return None
    output = options.output / f"torch-{spec.replace(':', '-').replace(',', '+')}-seed{seed}.json"
    if not output.exists():
        script = Path(__file__).with_name("torch_reviews.py")
        command = [sys.executable, script, files["train"], files["test"], spec, seed, options.epochs, CHOICES[spec], output]
        subprocess.run([str(part) for part in command], check=True)
    return json.loads(output.read_text(encoding="utf-8"))


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def row(spec: str, found: list[dict], torch: list[dict], epochs: int) -> list[str]:
    """A line of the table; times are the first seed's, without compilation and evaluation."""
    seconds, first = found[0]["seconds"], found[0]
    later = (seconds["step"] + seconds["data_wait"]) / epochs
    cells = [
        f"`{spec}`",
        f"{first['trained_parameters']:,}",
        f"{spread([r['test']['accuracy'] for r in found])} ({len(found)})",
        f"{later + seconds['prefix']:.1f} s",
        f"{later:.1f} s",
        f"{first['peak_memory_bytes'] / 1e9:.2f} GB",
    ]
    if torch:
        cells += [spread([r["accuracy"] for r in torch]), f"{torch[0]['train_seconds'] / epochs:.1f} s"]
        cells.append(f"{torch[0]['peak_memory_bytes'] / 1e9:.2f} GB")
    return cells


def plot(found: dict[str, list[dict]], path: Path, epochs: int) -> None:
    """Accuracy over training time; a point a choice, bars from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for spec, runs in found.items():
        seconds = runs[0]["seconds"]
        cost = seconds["prefix"] + seconds["step"] + seconds["data_wait"]
        scores = [r["test"]["accuracy"] for r in runs]
        mean = statistics.mean(scores)
        axes.errorbar(cost, mean, [[mean - min(scores)], [max(scores) - mean]], fmt="o", color="C0", capsize=3)
        axes.annotate(spec, (cost, mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel=f"training time of {epochs} epochs, without compilation (s)", ylabel="test accuracy", xscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/partial-cost"))
    parser.add_argument("--examples", type=int, default=2048, help="training sentences, 0 for all 10,191")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--torch-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--choices", nargs="+", default=list(CHOICES))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--torch", action="store_true", help="run PyTorch too")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = reviews.write(Path("data/reviews"))
    files["train"] = reviews.sample(files["train"], options.examples)
    ours: dict[str, list[dict]] = {}
    lines = []
    for spec in options.choices:
        ours[spec] = [run(spec, seed, files, options) for seed in options.seeds]
        theirs = [run_torch(spec, seed, files, options) for seed in options.torch_seeds] if options.torch else []
        lines.append(row(spec, ours[spec], [r for r in theirs if r is not None], options.epochs))
    head = ["trains", "parameters", "test accuracy (seeds)", "first epoch", "later epochs", "peak memory"]
    head += ["PyTorch accuracy", "PyTorch epoch", "PyTorch memory"] if options.torch else []
    lines = [line + ["–"] * (len(head) - len(line)) for line in lines]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot(ours, options.output / "accuracy-cost.svg", options.epochs)
    print(table)
