"""A text, or a pair of texts, is of any number of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ftjax.data.files import Reader, Rows, label
from ftjax.data.tokenize import Examples, label_names, tokenized
from ftjax.errors import InputError
from ftjax.models import Model
from ftjax.objectives import NO_LABEL, Loss
from ftjax.objectives.multi_label import MultiLabel
from ftjax.tasks.task import LOSS, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SEPARATOR = "|"


def read_names(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> tuple[str, ...] | None:
    """A cell as class names: a list, or a text with | between them; null and the empty text are none, [] is no class."""
    if value is None or value == "":
        return None
    parts = value if isinstance(value, list) else value.split(SEPARATOR) if isinstance(value, str) else [value]
    parts = [part.strip() if isinstance(part, str) else part for part in parts]
    names = [name for part in parts if (name := label(part, classes, source, row)) is not None]
    if len(names) < len(parts):
        raise InputError(f"{source}: the label of row {row}, {value!r}, has an empty class name.")
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class MultiLabelClassification(Task):
    """A class is predicted where its probability, by itself, is above 1/2."""

    name: ClassVar[str] = "multi-label"
    metrics: ClassVar[dict[str, Metric]] = {
        "micro_f1": Metric("micro F1"),
        "macro_f1": Metric("macro F1"),
        "loss": LOSS,
    }
    reader: ClassVar[Reader] = Reader(label=read_names)
    problem_type: ClassVar[str | None] = "multi_label_classification"
    packages: ClassVar[tuple[str, ...]] = ("sklearn.metrics",)
    packs: ClassVar[bool] = True

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return raw_config.get("problem_type") == cls.problem_type

    def occurring(self, rows: Rows) -> list[Any]:
        return [[name] for name in sorted({name for names in rows.labels or () for name in names or ()})]

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        names = tuple(dict.fromkeys(name for part in rows for row in part.labels or () for name in row or ()))
        if not names:
            raise InputError(f"{rows[0].source}: no row is of any class; training needs some.")
        own = next((part.label_names for part in rows if part.label_names), None)
        labels = own or label_names([Rows([], None, list(names), rows[0].source)])
        return dataclasses.replace(self, labels=declared if set(labels) <= set(declared) else labels)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        number = {name: i for i, name in enumerate(self.labels)}
        labels = np.full((len(rows.texts), max(1, len(self.labels))), NO_LABEL, np.int32)
        for row, names in enumerate(rows.labels or ()):
            if names is None:
                continue
            if unknown := [name for name in names if name not in number]:
                raise InputError(
                    f"{rows.source}: row {row + 1} has the label {unknown[0]!r}, which training has not seen; "
                    f"known: {', '.join(self.labels)}."
                )
            labels[row] = 0
            labels[row, [number[name] for name in names]] = 1
        return dataclasses.replace(tokenized(rows.texts, rows.pairs, tokenizer, max_length), labels=labels)

    def made_up(self, examples: Examples) -> Examples:
        return dataclasses.replace(examples, labels=np.broadcast_to(np.int32(0), (len(examples), len(self.labels))))

    def loss(self, model: Model) -> Loss:
        return MultiLabel(model)

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        """micro_f1 counts all pairs of row and class alike, macro_f1 is the mean over the classes that occur."""
        from sklearn.metrics import f1_score

        known = examples.labeled
        logits, given = np.stack(outputs)[known].astype(np.float64), examples.labels[known]
        occurring = np.flatnonzero((given | (logits > 0)).any(0))
        f1 = {
            f"{kind}_f1": float(f1_score(given, logits > 0, labels=occurring, average=kind, zero_division=0.0))
            for kind in ("micro", "macro")
        } if len(occurring) else {"micro_f1": 0.0, "macro_f1": 0.0}  # fmt: skip
        return {"loss": float((np.logaddexp(0.0, logits) - given * logits).mean()), **f1}

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        found = []
        for text, logits in zip(rows.texts, outputs, strict=True):
            sure = [float(p) for p in np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))]
            chosen = [name for name, p in zip(self.labels, sure, strict=True) if p > 0.5]
            found.append({"text": text, "prediction": chosen, "scores": dict(zip(self.labels, sure, strict=True))})
        return found

    @staticmethod
    def wrong(label: list[str], prediction: list[str]) -> float:
        """How many classes are in one and not in the other."""
        return float(len(set(label) ^ set(prediction)))

    @staticmethod
    def say(value: list[str]) -> str:
        return ", ".join(value) or "none"


TASK = MultiLabelClassification
