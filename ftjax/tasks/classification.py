"""A text, or a pair of texts, is of one of several classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ftjax.data.files import Rows
from ftjax.data.template import Template
from ftjax.data.tokenize import Examples, encode, label_names, label_numbers
from ftjax.descriptions import TEMPLATES, Descriptions
from ftjax.errors import InputError, did_you_mean
from ftjax.evaluation import softmax
from ftjax.models import Model
from ftjax.objectives import Loss
from ftjax.objectives.classification import Classification
from ftjax.pretrained.load import noted_cloze
from ftjax.tasks.task import LOSS, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """loss (mean cross-entropy, nats), accuracy, macro_f1 and matthews over the rows that have a label.

    logits float (rows, classes), labels int (rows,), negative where a row has none. Every labelled row counts once.
    macro_f1 averages over the classes that occur in labels or predictions.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    logits, labels = logits[labels >= 0], labels[labels >= 0]
    predictions = logits.argmax(-1)
    probability = softmax(logits)[np.arange(len(labels)), labels]
    return {
        "loss": float(-np.log(np.maximum(probability, np.finfo(np.float64).tiny)).mean()),
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predictions)),
    }


def scored(texts: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """{"text", "prediction", "scores"} of each text from probabilities (texts, classes)."""
    return [
        {"text": text, "prediction": labels[int(row.argmax())], "scores": dict(zip(labels, map(float, row), strict=True))}
        for text, row in zip(texts, probabilities, strict=True)
    ]


def keep_labels(rows: Rows, names: tuple[str, ...], number: int, seed: int) -> Rows:
    """The rows with the labels of `number` rows a class left, drawn by the seed; the others have none."""
    if rows.labels is None:
        return rows
    rng = np.random.default_rng(seed)
    given = np.array([-1 if name is None else names.index(name) for name in rows.labels])
    kept: set[int] = set()
    for label, name in enumerate(names):
        found = np.flatnonzero(given == label)
        if len(found) < number:
            raise InputError(f"--labels-per-class {number}: {rows.source} has only {len(found)} rows of {name!r}.")
        kept.update(rng.permutation(found)[:number].tolist())
    return dataclasses.replace(rows, labels=[name if i in kept else None for i, name in enumerate(rows.labels)])


@dataclasses.dataclass(frozen=True)
class TextClassification(Task):
    """Labels are class names; the prediction is the likeliest.

    words, template: those of a cloze, by class; None: the usual classifier, or the usual template. placed: the template as the
    tokenizer spells it.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[dict[str, Metric]] = {
        "accuracy": Metric("accuracy"),
        "macro_f1": Metric("macro F1"),
        "matthews": Metric("Matthews"),
        "loss": LOSS,
    }
    problem_type: ClassVar[str | None] = "single_label_classification"
    row_classes: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("sklearn.metrics",)
    packs: ClassVar[bool] = True

    words: Descriptions | None = dataclasses.field(default=None, hash=False)
    template: str | None = None
    placed: Template | None = None

    @classmethod
    def of(cls, settings: Any) -> Self:
        task = super().of(settings)
        if getattr(settings, "classifier", None) != "cloze":
            return task
        return dataclasses.replace(task, words=settings.label_words, template=settings.template)

    @classmethod
    def starting(cls, settings: Any, raw_config: dict[str, Any]) -> Self:
        task = cls.of(settings)
        noted = noted_cloze(raw_config)
        if noted is None or settings.classifier not in (None, "cloze"):
            return task
        template, words = noted
        return dataclasses.replace(task, words=task.words or words, template=task.template or template)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return raw_config.get("ftjax_classifier") == "cloze"

    @classmethod
    def saved(cls, settings: Any, raw_config: dict[str, Any], labels: tuple[str, ...]) -> Self:
        task = super().saved(settings, raw_config, labels)
        template, words = noted_cloze(raw_config) or (None, None)
        return dataclasses.replace(task, words=words, template=template)

    def notes(self) -> dict[str, Any]:
        if self.cloze is None or self.words is None:
            return {}
        tokens = {
            name: dict(zip(self.words[name], found, strict=True))
            for name, found in zip(self.labels, self.cloze.words, strict=True)
        }
        places = {"before": self.cloze.before, "after": self.cloze.after, "gap": self.cloze.gap}
        return {"ftjax_cloze": {"template": self.template, "words": tokens, **places}}

    def keep_labels(self, rows: Sequence[Rows], number: int, seed: int) -> list[Rows]:
        names = label_names(rows)
        return [keep_labels(part, names, number, seed) for part in rows]

    def occurring(self, rows: Rows) -> list[Any]:
        return sorted({name for name in rows.labels or () if name is not None})

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        occurring = {name for part in rows for name in part.labels or () if name is not None}
        if len(occurring) == 1:
            only = occurring.pop()
            raise InputError(f"{rows[0].source}: every label is {only!r}; training needs rows of at least two classes.")
        labels = label_names(rows)
        return dataclasses.replace(self, labels=declared if labels and set(labels) <= set(declared) else labels)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast, max_length: int, *, causal: bool) -> Self:
        """InputError for a class without words, words without a class, and as `ftjax.data.template.Template` has it."""
        if self.words is None or not self.labels:
            return self
        for name in self.words:
            if name not in self.labels:
                near = did_you_mean(name, self.labels)
                raise InputError(f"--description {name}=...: there is no such class; there are {', '.join(self.labels)}.{near}")
        if without := [name for name in self.labels if not self.words.get(name)]:
            raise InputError(
                f"--classifier cloze: no word for the class {without[0]!r}; give one with --description '{without[0]}=WORD'."
            )
        template = self.template or TEMPLATES["decoder" if causal else "encoder"]
        placed = Template.of(template, tokenizer, causal=causal, max_length=max_length)
        words = {name: self.words[name] for name in self.labels}
        return dataclasses.replace(self, words=words, template=template, placed=placed, cloze=placed.cloze(words, tokenizer))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        if self.placed is None:
            return encode(rows, tokenizer, self.labels, max_length)
        if rows.pairs:
            raise InputError(f"{rows.source}: a cloze has one text a row; leave --text-pair-column out.")
        examples = self.placed.encode(rows.texts, tokenizer, max_length)
        return dataclasses.replace(examples, labels=label_numbers(rows, self.labels))

    def loss(self, model: Model) -> Loss:
        return Classification(model)

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        return classification_metrics(np.stack(outputs), examples.labels)

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        return scored(rows.texts, softmax(np.stack(outputs)), self.labels)


TASK = TextClassification
