"""A text, or a pair of texts, has a number, such as how alike two sentences are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ftjax.data.files import Reader, Rows
from ftjax.data.tables import kind_of
from ftjax.data.tokenize import Examples, tokenized
from ftjax.errors import InputError
from ftjax.models import Model
from ftjax.objectives import Loss
from ftjax.objectives.regression import Regression
from ftjax.pretrained.load import saved_labels, unnamed
from ftjax.tasks.task import LOSS, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def read_number(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> float | None:
    """A cell as a finite number that float32 can hold; null and empty are none."""
    if value is None or value == "":
        return None
    try:
        number = float(np.float32(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        found = repr(value) if isinstance(value, str | int | float) else kind_of(value)
        raise InputError(f"{source}: the label of row {row} is {found}, not a finite number.")
    return number


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of float64 (rows,) each; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size else 0.0


def numbers(rows: Rows) -> np.ndarray:
    """The rows' labels, float32 (rows,), NaN where there is none."""
    given = rows.labels or [None] * len(rows.texts)
    return np.array([math.nan if number is None else number for number in given], np.float32)


@dataclasses.dataclass(frozen=True)
class TextRegression(Task):
    """The head has one output, which is the number."""

    name: ClassVar[str] = "regression"
    metrics: ClassVar[dict[str, Metric]] = {
        "mse": Metric("mean squared error", higher_is_better=False),
        "pearson": Metric("Pearson correlation"),
        "spearman": Metric("Spearman correlation"),
        "loss": LOSS,
    }
    reader: ClassVar[Reader] = Reader(label=read_number)
    num_labels: ClassVar[int | None] = 1
    problem_type: ClassVar[str | None] = "regression"
    packages: ClassVar[tuple[str, ...]] = ("scipy.stats",)
    packs: ClassVar[bool] = True

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        """As transformers has it, also where one output is all that tells."""
        kind = raw_config.get("problem_type")
        return kind == cls.problem_type or (kind is None and len(saved_labels(raw_config)) == 1)

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        return dataclasses.replace(self, labels=declared if len(declared) == 1 else unnamed(1))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        return dataclasses.replace(tokenized(rows.texts, rows.pairs, tokenizer, max_length), labels=numbers(rows))

    def made_up(self, examples: Examples) -> Examples:
        return dataclasses.replace(examples, labels=np.broadcast_to(np.float32(0), (len(examples),)))

    def loss(self, model: Model) -> Loss:
        return Regression(model)

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        """mse is the loss; the correlations are 0 where predictions, or labels, are all the same."""
        from scipy.stats import rankdata

        given = numbers(rows).astype(np.float64)
        known = np.isfinite(given)
        given, predicted = given[known], np.stack(outputs)[known, 0].astype(np.float64)
        squared = float(((predicted - given) ** 2).mean())
        return {
            "loss": squared,
            "mse": squared,
            "pearson": correlation(predicted, given),
            "spearman": correlation(rankdata(predicted), rankdata(given)),
        }

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        return [{"text": text, "prediction": float(value[0])} for text, value in zip(rows.texts, outputs, strict=True)]

    @staticmethod
    def wrong(label: float, prediction: float) -> float:
        return abs(label - prediction)

    @staticmethod
    def say(value: float) -> str:
        return f"{value:.4g}"


TASK = TextRegression
