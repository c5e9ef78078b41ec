"""What predictions say class by class, and whether their probabilities can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftjax.report.formats import finite

BINS = 10
"""Of equal width over the probability, as is usual for reliability diagrams."""


@dataclass(frozen=True)
class ClassScore:
    """Of one label; precision is None where nothing was predicted as it, recall where no row has it."""

    label: str
    rows: int
    precision: float | None
    recall: float | None
    f1: float


def class_scores(predictions: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[ClassScore]:
    """Of every label given, and of those that occur besides; predictions have a `label` and a `prediction`."""
    right = Counter(str(p["label"]) for p in predictions if str(p["label"]) == str(p["prediction"]))
    having = Counter(str(p["label"]) for p in predictions)
    predicted = Counter(str(p["prediction"]) for p in predictions)
    known = [*labels, *sorted({*having, *predicted} - set(labels))]
    return [
        ClassScore(
            label,
            having[label],
            right[label] / predicted[label] if predicted[label] else None,
            right[label] / having[label] if having[label] else None,
            2 * right[label] / (having[label] + predicted[label]) if having[label] + predicted[label] else 0.0,
        )
        for label in known
    ]


@dataclass(frozen=True)
class Bin:
    """Rows whose predictions are about equally sure: their mean probability, and the share of them that is right."""

    rows: int
    confidence: float
    accuracy: float


def calibration(predictions: Sequence[dict[str, Any]]) -> list[Bin]:
    """The bins that have rows, by the probability of what was predicted (Guo et al., 2017)."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for p in predictions:
        scores = p.get("scores")
        sure = finite(scores.get(str(p["prediction"]))) if isinstance(scores, dict) else None
        if sure is not None and 0.0 <= sure <= 1.0:
            groups.setdefault(min(int(sure * BINS), BINS - 1), []).append((sure, str(p["label"]) == str(p["prediction"])))
    return [
        Bin(len(rows), sum(sure for sure, _ in rows) / len(rows), sum(right for _, right in rows) / len(rows))
        for _, rows in sorted(groups.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far probability and share of right predictions are apart, on average over rows."""
    return sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / sum(b.rows for b in bins)


def sure_and_right(bins: Sequence[Bin]) -> tuple[float, float]:
    """The mean probability of the predictions and the share of them that is right."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * b.confidence for b in bins) / rows, sum(b.rows * b.accuracy for b in bins) / rows
