"""What another model says of texts, as `ftjax predict` writes it: its probabilities, the targets of distillation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.data.files import Rows, text
from ftjax.data.tables import kind_of, listed, load_table, shown
from ftjax.errors import InputError

COLUMNS = ("text", "scores")
CLOSE = 1e-3
"""How far a sum of probabilities may be from 1: they may have been rounded."""


@dataclasses.dataclass(frozen=True)
class TeacherScores:
    """classes: in the order of the first row. of_text: text -> its probability of each. source: the file, for messages."""

    classes: tuple[str, ...]
    of_text: dict[str, tuple[float, ...]]
    source: str

    def of(self, train: list[Rows], labels: tuple[str, ...]) -> np.ndarray:
        """Probabilities of the classes `labels`, float32 (rows, classes), of all rows in turn; those of a row that has a label
        may be missing, and are 0 then. InputError where a row without one has none, and for other classes.
        """
        if set(labels) != set(self.classes):
            raise InputError(f"{self.source}: scores the classes {listed(self.classes)}, the rows have {listed(labels)}.")
        order = [self.classes.index(name) for name in labels]
        found: list[tuple[float, ...]] = []
        for rows in train:
            if rows.pairs:
                raise InputError("--teacher-scores: goes by the text of a row, and these rows have a second one.")
            given = rows.labels or [None] * len(rows.texts)
            for row, (words, label) in enumerate(zip(rows.texts, given, strict=True), start=1):
                scores = self.of_text.get(words)
                if scores is None and label is None:
                    raise InputError(
                        f"{self.source}: has no scores for row {row} of {rows.source}; write them with "
                        f"ftjax predict --model TEACHER --file {rows.source} --output FILE.jsonl."
                    )
                found.append(scores or (0.0,) * len(labels))
        return np.array(found, np.float32)[:, order]


def read_teacher(path: Path) -> TeacherScores:
    """Read a file with the columns text and scores, such as {"text": "...", "scores": {"bad": 0.9, "good": 0.1}} a line.

    Raises InputError for a file that cannot be read or has other columns, and for scores that are no probabilities, or of
    other classes than those of the first row.
    """
    table, source = load_table(path), shown(path)
    if missing := [name for name in COLUMNS if name not in table.names]:
        raise InputError(
            f"{source}: no column {missing[0]!r}; its columns are: {listed(table.names)}. --teacher-scores takes what "
            "ftjax predict --file writes."
        )
    classes: tuple[str, ...] = ()
    found: dict[str, tuple[float, ...]] = {}
    for row, (words, scores) in enumerate(zip(table.cells("text"), table.cells("scores"), strict=True), start=1):
        if not isinstance(scores, dict) or not scores:
            raise InputError(f"{source}: the scores of row {row} are {kind_of(scores)}, not a number for each class.")
        classes = classes or tuple(scores)
        if set(scores) != set(classes):
            raise InputError(f"{source}: row {row} scores {listed(scores)}, the first row {listed(classes)}.")
        values = tuple(scores[name] for name in classes)
        if not all(map(_is_probability, values)) or abs(sum(values) - 1) > CLOSE:
            raise InputError(f"{source}: the scores of row {row} are no probabilities: {', '.join(map(str, values))}.")
        found[text(words, source, row)] = values
    if not found:
        raise InputError(f"{source}: holds no rows.")
    return TeacherScores(classes, found, source)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1 + CLOSE
