"""Accuracy against the number of labels on the review sentences: a table, and a plot with one line a method.

    python experiments/few_labels.py --output runs/few-labels                       # everything: hours on 2 cores
    python experiments/few_labels.py --output runs/few-labels --labels 64 --methods full self-training --seeds 0

The labels are those of a few rows drawn by the seed; all other training sentences are given without labels. The test
split is scored once a run and chooses nothing; there is no validation split, since with few labels nobody has one:
settings are fixed here, the same for all numbers of labels. Every run is a process of its own, one after the other;
what is finished is not done twice.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import reviews
import zero_labels

TRAIN = ("--batch-size", "32", "--precision", "bfloat16", "--warmup-steps", "10")


def epochs(labels: int) -> int:
    """Passes over so many rows: few rows come more often, all of them twice."""
    return max(2, min(20, 2560 // labels)) if labels else 2


def full(labels: int, start: Path) -> tuple[object, ...]:
    """The labelled rows alone, transformers' head: what everybody does first."""
    return ("--model", start, "--method", "full", "--learning-rate", "5e-5", "--epochs", epochs(labels))


def mean(labels: int, start: Path) -> tuple[object, ...]:
    """The same with a head on the mean of the last hidden states."""
    return (*full(labels, start), "--classifier", "mean")


def pairs(labels: int, start: Path) -> tuple[object, ...]:
    """SetFit: first pairs of equal and different labels, then a head on the embeddings."""
    return (
        *("--model", start, "--method", "partial", "--train-parameters", "head", "--classifier", "mean"),
        *("--learning-rate", "1e-2", "--epochs", "10", "--adapt-epochs", epochs(labels), "--adapt-loss", "label-pairs"),
        *("--adapt-learning-rate", "2e-5"),
    )


def descriptions(labels: int, start: Path) -> tuple[object, ...]:
    """The labelled rows alone, but from the model that descriptions and unlabelled rows have made (`ftjax zero-shot`)."""
    return ("--model", start, "--method", "full", "--learning-rate", "2e-5", "--epochs", epochs(labels))


def self_training(labels: int, start: Path) -> tuple[object, ...]:
    """From there, with the unlabelled rows as their own labels where a mean teacher is sure."""
    return (
        *("--model", start, "--method", "self-supervised", "--learning-rate", "2e-5", "--epochs", "2"),
        *("--self-supervised-loss", "pseudo-label=1", "--confidence", "0.9", "--teacher-decay", "0.99"),
        *("--augmentation", "dropout", "--unlabeled-ratio", "3"),
    )


METHODS: dict[str, Callable[[int, Path], tuple[object, ...]]] = {
    "full": full,
    "mean": mean,
    "pairs": pairs,
    "descriptions": descriptions,
    "self-training": self_training,
}
LABELS = (0, 16, 64, 256, 512, 1024, 10191)


def ftjax(*arguments: object) -> None:
    """One command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "ftjax", *map(str, arguments)], check=True)


def run(method: str, labels: int, seed: int, files: dict[str, Path], output: Path) -> float:
    """Test accuracy of one run."""
    start = zero_labels.minilm("twenty-five", seed, files, output) if method in ("descriptions", "self-training") else {}
    if labels == 0:
        return start["rounds"][-1]["accuracy"]
    directory = output / f"{method}-{labels}-seed{seed}"
    if not (directory / "result.json").exists():
        model = Path(start["model"]) if start else reviews.model_dir()
        few = ("--labels-per-class", labels // 2) if labels < max(LABELS) else ()
        ftjax(
            *("train", *METHODS[method](labels, model), *few, "--train-file", files["train"], "--test-file", files["test"]),
            *("--seed", seed, *TRAIN, "--output", directory, "--resume"),
        )
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))["test"]["accuracy"]


def plot(found: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Accuracy over the number of labels; bars from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for method, by_labels in found.items():
        numbers = sorted(by_labels)
        means = [statistics.mean(by_labels[n]) for n in numbers]
        below = [m - min(by_labels[n]) for m, n in zip(means, numbers, strict=True)]
        above = [max(by_labels[n]) - m for m, n in zip(means, numbers, strict=True)]
        axes.errorbar([max(n, 4) for n in numbers], means, [below, above], marker="o", capsize=3, label=method)
    ticks = sorted({n for by_labels in found.values() for n in by_labels})
    axes.set(xscale="log", xlabel="labels", ylabel="test accuracy")
    axes.set_xticks([max(n, 4) for n in ticks], [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/few-labels"))
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="0: none; at least 2 otherwise")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = reviews.write(Path("data/reviews"))
    found: dict[str, dict[int, list[float]]] = {}
    for labels in options.labels:
        for method in options.methods:
            if labels == 0 and method != "self-training":
                continue  # without labels there is one way only
            if labels >= max(LABELS) and method == "self-training":
                continue  # no row is left without a label
            found.setdefault(method, {})[labels] = [run(method, labels, s, files, options.output) for s in options.seeds]
    columns = list(options.labels)
    lines = [["method", *map(str, columns)], ["---"] * (len(columns) + 1)]
    lines += [[m, *(zero_labels.spread(by[n]) if n in by else "–" for n in columns)] for m, by in found.items()]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot(found, options.output / "accuracy-labels.svg")
    print(table)
