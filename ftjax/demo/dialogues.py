"""Short English dialogues (chatterbot-corpus), and SmolLM2-135M-Instruct in llama.cpp's format, 4 bits a weight.

What a conversation begins with decides by its SHA-1 whether it is held out, so that the same question is never on both sides.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from ftjax.demo import model, package_file

LONGEST = 300  # characters of a conversation; the few longer ones are lessons in programming and in support


def model_file() -> Path:
    """SmolLM2-135M-Instruct."""
    return model("smollm2")


def conversations() -> list[list[str]]:
    """The English dialogues of at most LONGEST characters: what two speakers say in turn."""
    found: list[list[str]] = []
    for file in sorted(package_file("chatterbot-corpus", "chatterbot_corpus/data/english").glob("*.yml")):
        with file.open(encoding="utf-8") as opened:
            found += [[str(turn) for turn in turns] for turns in yaml.safe_load(opened)["conversations"]]
    return [turns for turns in found if len(turns) > 1 and sum(map(len, turns)) <= LONGEST]


def held_out(turns: list[str]) -> bool:
    """Whether a conversation is kept from training: about one in ten."""
    return int(hashlib.sha1(turns[0].strip().lower().encode()).hexdigest(), 16) % 10 == 0


def write_data(directory: Path, **sizes: int) -> dict[str, Path]:
    """train.jsonl and test.jsonl, a conversation a row; of so many each, spread over the subjects, or of all."""
    directory.mkdir(parents=True, exist_ok=True)
    every = conversations()
    sides = {"train": [turns for turns in every if not held_out(turns)], "test": [turns for turns in every if held_out(turns)]}
    numbers = {name: sizes.get(name, len(side)) for name, side in sides.items()}
    rows = {name: side[:: max(1, len(side) // numbers[name])][: numbers[name]] for name, side in sides.items()}
    for name, part in rows.items():
        lines = "".join(json.dumps({"turns": turns}, ensure_ascii=False) + "\n" for turns in part)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: directory / f"{name}.jsonl" for name in rows}
