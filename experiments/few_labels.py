"""Accuracy against the number of labels on the review sentences: a table, and a plot with one line a method.

    python experiments/few_labels.py --output runs/few-labels                       # everything: hours on 2 cores
    python experiments/few_labels.py --output runs/few-labels --labels 64 --methods full self-training --seeds 0
    python experiments/few_labels.py --output runs/few-labels --finished            # the table and plot of what there is

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

import zero_labels

from ftjax.demo import dialogues, reviews


def epochs(labels: int) -> int:
    """Passes over so many rows: few rows come more often, all of them twice."""
    return max(2, min(20, 2560 // labels)) if labels else 2


def full(labels: int, start: Path) -> tuple[object, ...]:
    """The labelled rows alone, transformers' head: what everybody does first."""
    return ("--model", start, "--method", "full", "--learning-rate", "5e-5", "--epochs", epochs(labels))


def pairs(labels: int, start: Path) -> tuple[object, ...]:
    """SetFit: first pairs of equal and different labels, then a head on the embeddings."""
    return (
        *("--model", start, "--method", "partial", "--train-parameters", "head", "--classifier", "mean"),
        *("--learning-rate", "1e-2", "--epochs", "10", "--adapt-epochs", epochs(labels), "--adapt-loss", "label-pairs"),
        *("--adapt-learning-rate", "2e-5"),
    )


def described(labels: int, start: Path) -> tuple[object, ...]:
    """The labelled rows alone, but with the head that the descriptions give, not with one drawn at random."""
    return full(labels, start)


def descriptions(labels: int, start: Path) -> tuple[object, ...]:
    """The labelled rows alone, but from the model that descriptions and unlabelled rows have made (`ftjax zero-shot`)."""
    return ("--model", start, "--method", "full", "--learning-rate", "2e-5", "--epochs", epochs(labels))


def taught(labels: int, start: Path) -> tuple[object, ...]:
    """SmolLM2 learns the labels first, as in `words`; MiniLM learns what it says of all other sentences, beside the labels."""
    return ("--model", start, *zero_labels.STUDENT, "--unlabeled-ratio", "15", "--supervised-weight", "0.1")


def self_training(labels: int, start: Path) -> tuple[object, ...]:
    """From descriptions and unlabelled rows, with the latter as their own labels where a mean teacher is sure."""
    return (
        *("--model", start, "--method", "self-supervised", "--learning-rate", "2e-5", "--epochs", "2"),
        *("--self-supervised-loss", "pseudo-label=1", "--confidence", "0.9", "--teacher-decay", "0.99"),
        *("--augmentation", "dropout", "--unlabeled-ratio", "3"),
    )


def words(labels: int, start: Path) -> tuple[object, ...]:
    """Another model: SmolLM2, whose last four layers learn to say "good" or "bad" after a sentence (PET)."""
    return (
        *("--model", dialogues.model_file(), "--classifier", "cloze", *zero_labels.JUDGE),
        *("--method", "partial", "--train-parameters", "last:4", "--learning-rate", "1e-4"),
        *("--epochs", max(3, epochs(labels) // 2)),
    )


METHODS: dict[str, Callable[[int, Path], tuple[object, ...]]] = {
    "full": full,
    "pairs": pairs,
    "described": described,
    "descriptions": descriptions,
    "taught": taught,
    "self-training": self_training,
    "words": words,
}
EVERY = reviews.SPLITS["train"]
LABELS = (0, 16, 64, 256, 512, 1024, EVERY)
Found = dict[str, dict[int, dict[int, float]]]
"""Method -> number of labels -> seed -> test accuracy."""
WITHOUT = {"descriptions": zero_labels.SETS[-1], "taught": "taught-0"}
"""What the runs are called that need no label, by the method that goes on from them."""
ADAPTED = ("descriptions", "self-training")
"""The methods that begin with what descriptions and all sentences without labels give."""
DESCRIBED = ("described", "taught")
"""Those that begin with what descriptions alone give."""

MAJORITY = 0.552
"""Share of the more frequent class among the test sentences."""
PYTORCH = {64: (0.562, 0.588, 0.654, 0.561, 0.554), 512: (0.749, 0.753, 0.770), EVERY: (0.845, 0.831, 0.838)}
"""Test accuracies of PyTorch's Trainer with the recipe of `full`, seeds 0, 1, ..., measured once on another machine."""


def ftjax(*arguments: object) -> None:
    """One command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "ftjax", *map(str, arguments)], check=True)


def applies(method: str, labels: int) -> bool:
    """Whether a method is tried with so many labels."""
    if labels == 0:
        return method in WITHOUT
    return method not in ("self-training", "taught") or labels < EVERY  # they need rows without a label


def finished(method: str, labels: int, seed: int, output: Path) -> bool:
    """Whether a run has been done."""
    name = f"{method}-{labels}" if labels else WITHOUT[method]
    return (output / f"{name}-seed{seed}" / "result.json").exists()


def run(method: str, labels: int, seed: int, files: dict[str, Path], output: Path, precision: str) -> float:
    """Test accuracy of one run."""
    start: dict = {}
    if labels == 0 and method == "taught":
        start = zero_labels.taught(seed, files, output, precision)
    elif method in ADAPTED:
        start = zero_labels.minilm(zero_labels.SETS[-1], seed, files, output, precision)
    elif method in DESCRIBED:
        start = zero_labels.first(files, output, precision)
    if labels == 0:
        return start["rounds"][-1]["accuracy"]
    directory = output / f"{method}-{labels}-seed{seed}"
    if not (directory / "result.json").exists():
        model = Path(start["model"]) if start else reviews.model_dir()
        few = ("--labels-per-class", labels // 2) if labels < EVERY else ()
        if method == "taught":
            run("words", labels, seed, files, output, precision)
            teacher = output / f"words-{labels}-seed{seed}"
            scores = zero_labels.told(teacher / "model", files, teacher.with_suffix(".jsonl"), precision)
            few += ("--teacher-scores", scores)
        ftjax(
            *("train", *METHODS[method](labels, model), *few, "--train-file", files["train"], "--test-file", files["test"]),
            *("--seed", seed, *zero_labels.TRAIN, "--precision", precision, "--output", directory, "--resume"),
        )
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))["test"]["accuracy"]


def table_of(found: Found, columns: list[int]) -> str:
    """Mean, standard deviation and number of seeds; below them what a method adds to `full` on the same seeds."""
    lines = [["method", *(f"{n:,}" if n < EVERY else "all" for n in columns)], ["---"] * (len(columns) + 1)]
    lines += [[m, *(zero_labels.spread([*by[n].values()]) if n in by else "–" for n in columns)] for m, by in found.items()]
    full = found.get("full", {})
    for method, by_labels in found.items():
        both = {n: [seen[s] - full[n][s] for s in seen if s in full[n]] for n, seen in by_labels.items() if n in full}
        if method != "full" and any(both.values()):
            lines.append([f"{method} - full", *(zero_labels.spread(both[n]) if both.get(n) else "–" for n in columns)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plot(found: Found, path: Path) -> None:
    """Accuracy over the number of labels: mean and standard deviation over the seeds, one line a method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    none = 5  # on a logarithmic axis zero needs a place of its own
    names = {name: f"{name} (SmolLM2)" if name == "words" else name for name in METHODS if name in found}
    lines = [({n: [*by.values()] for n, by in found[name].items()}, shown, {}) for name, shown in names.items()]
    lines.append((PYTORCH, "full, PyTorch", {"color": "grey", "linestyle": "--"}))
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for number, (by_labels, name, style) in enumerate(lines):
        numbers = sorted(by_labels)
        means = [statistics.mean(by_labels[n]) for n in numbers]
        spread = [statistics.stdev(by_labels[n]) if len(by_labels[n]) > 1 else 0.0 for n in numbers]
        aside = 1.04 ** (number - len(lines) / 2)  # or bars would hide each other
        places = [max(n, none) * aside for n in numbers]
        axes.errorbar(places, means, spread, marker="os^DvPX*"[number], markersize=5, capsize=3, label=name, **style)
    axes.axhline(MAJORITY, color="grey", linestyle=":", linewidth=1)
    beside = {"transform": axes.get_yaxis_transform(), "color": "grey", "fontsize": 9}
    axes.text(0.01, MAJORITY + 0.003, "majority class", **beside)
    ticks = sorted({n for by_labels, *_ in lines for n in by_labels})
    axes.set(xscale="log", xlabel="labelled sentences", ylabel="test accuracy, mean ± std over seeds")
    axes.set_xticks([max(n, none) for n in ticks], ["all" if n == EVERY else f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.16))
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/few-labels"))
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="0: none; at least 2 otherwise")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--precision", default="bfloat16", help="float32 is faster on a CPU without AMX")
    parser.add_argument("--finished", action="store_true", help="train nothing; take the runs that are there")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = reviews.write(Path("data/reviews"))
    found: dict[str, dict[int, list[float]]] = {}
    for labels in options.labels:
        for method in options.methods:
            if not applies(method, labels):
                continue
            seeds = [s for s in options.seeds if not options.finished or finished(method, labels, s, options.output)]
            if seeds:
                accuracies = {s: run(method, labels, s, files, options.output, options.precision) for s in seeds}
                found.setdefault(method, {})[labels] = accuracies
    table = table_of(found, options.labels)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot(found, options.output / "accuracy-labels.svg")
    print(table)
