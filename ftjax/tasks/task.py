"""What a task is: what its rows and targets are, how they are learnt, scored and shown.

A task is a value that says things and does nothing: what reads and writes asks it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import jax
import numpy as np

from ftjax.data.batches import batches
from ftjax.data.files import Reader, Rows, read_dataset, read_file
from ftjax.data.packing import Packed, packed_batches
from ftjax.data.parts import Part
from ftjax.data.tokenize import Examples
from ftjax.errors import InputError
from ftjax.evaluation import predict_step
from ftjax.models import Model, Params
from ftjax.models.body import Classifier, Cloze, Config
from ftjax.objectives import Batch, Loss
from ftjax.pretrained.load import refuse_seq2seq

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ftjax.objective import Vocabulary

Outputs = list[np.ndarray]
"""What the model says of each example, in their order. What it says of tokens is as long as the example's batch was."""

Head = Literal["classifier", "masked_lm", "causal_lm"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a score is called in running text, and which way is better."""

    shown: str
    higher_is_better: bool = True


LOSS = Metric("loss", higher_is_better=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt. A new task is a subclass in a file of its own that says what differs from this.

    labels: the names of the classes, in the order of the head's outputs; () before `fitted`, or where nothing is labelled.
    cloze: what a classifier by words in a gap reads; None for any other.
    """

    labels: tuple[str, ...] = ()
    cloze: Cloze | None = None

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    """The scores of a data set, by their keys. The first chooses the best epoch and compares runs."""
    reader: ClassVar[Reader] = Reader()
    """The usual columns, and what becomes of their cells: `Rows.texts`, `pairs` and `labels`."""
    head: ClassVar[Head | None] = "classifier"
    """Which of the model's heads the loss reads; None where the model has none to choose."""
    classifier: ClassVar[Classifier | None] = None
    """The kind of classifier; None where --classifier or the architecture decides."""
    num_labels: ClassVar[int | None] = None
    """How many outputs the classifier has, where that does not depend on the rows."""
    problem_type: ClassVar[str | None] = None
    """config.json's `problem_type`, from which transformers' classifiers know their loss."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What `scores` imports, where that takes a while the first time."""
    packs: ClassVar[bool] = False
    """Whether several examples may share a row to learn from, each with a label of its own."""
    writes: ClassVar[bool] = False
    """Whether what a trained model predicts is how a text goes on: `prompts`."""
    row_classes: ClassVar[bool] = False
    """Whether a row is of one of the classes: what losses about classes and the report's confusion matrix need."""

    # Rows

    @classmethod
    def of(cls, settings: Any) -> Self:
        """The task as the settings of a command want it. InputError for those that belong to another one."""
        if getattr(settings, "window_overlap", None) is not None:
            raise InputError("--window-overlap is for --task question-answering.")
        return cls()

    @classmethod
    def starting(cls, settings: Any, raw_config: dict[str, Any]) -> Self:
        """The same, to train a model with this config.json, which may say what the settings leave open."""
        return cls.of(settings)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        """Whether a model with this config.json was trained for the task."""
        return False

    @classmethod
    def saved(cls, settings: Any, raw_config: dict[str, Any], labels: tuple[str, ...]) -> Self:
        """The task of a trained model, from its config.json and its head's labels."""
        return dataclasses.replace(cls.of(settings), labels=labels)

    def notes(self) -> dict[str, Any]:
        """What config.json must say, besides the labels, for `saved` to find it again."""
        return {}

    def columns(self, settings: Any, *, labels: bool = True) -> dict[str, str | None]:
        """The columns to read: those that the settings name, or else the usual ones."""
        names = ("text_column", "text_pair_column", "label_column") if labels else ("text_column", "text_pair_column")
        found = {name: getattr(settings, name) or getattr(self.reader, name) for name in names}
        return found if labels else found | {"label_column": None}

    def read_file(
        self, path: Path, settings: Any, *, labels: bool = True, require_labels: bool = False, part: Part | None = None
    ) -> Rows:
        """Rows of a file, or of a part of it, checked.

        Raises InputError as `ftjax.data.files.read_file`, and for rows that make no sense.
        """
        columns: dict[str, Any] = self.columns(settings, labels=labels)
        return self.checked(read_file(path, **columns, require_labels=require_labels, reader=self.reader, part=part))

    def read_dataset(self, settings: Any, split: str, *, require_labels: bool = False, part: Part | None = None) -> Rows:
        """Rows of a split of the data set that the settings name, as `read_file`."""
        where: dict[str, Any] = {"split": split, "config": settings.dataset_config, "part": part, **self.columns(settings)}
        where["require_labels"] = require_labels
        return self.checked(read_dataset(settings.dataset, **where, reader=self.reader))

    def checked(self, rows: Rows) -> Rows:
        """The rows as they are; InputError, naming the row, where one contradicts itself."""
        return rows

    def asked(self, texts: Sequence[str]) -> Rows:
        """Texts to predict for that are in no file. InputError for one that is empty."""
        if (number := next((n for n, text in enumerate(texts, start=1) if not text.strip()), None)) is not None:
            raise InputError(f"text {number} is empty: there is nothing to predict for.")
        return self.checked(Rows(list(texts), None, None, "the texts given"))

    def keep_labels(self, rows: Sequence[Rows], number: int, seed: int) -> list[Rows]:
        """The rows with the labels of `number` rows a class left, drawn by the seed."""
        raise InputError(f"--labels-per-class {number}: --task {self.name} has no classes to draw rows of.")

    def occurring(self, rows: Rows) -> list[Any]:
        """Labels, JSON-ready, that tell `fitted` as much as all those of the rows."""
        return []

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        """The task with what the training rows tell, such as `labels`; InputError where nothing can be learnt from them.

        declared: the class names that the model has already, whose order is to be kept where they will do.
        """
        return self

    # Tokens, model, loss

    def suits(self, config: Config, source: str) -> None:
        """InputError for an architecture that cannot do the task."""
        refuse_seq2seq(config, source)

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """The task with what it must know of the tokenizer; called before anything is encoded."""
        return self

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast, max_length: int, *, causal: bool) -> Self:
        """The task with what it must ask the tokenizer itself; called once the classes are known.

        max_length: of rows. causal: whether the model is a decoder.
        """
        return self

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        """Tokens and targets of the rows. InputError, naming the row, for a target that the task does not know."""
        raise NotImplementedError

    def rows_per_epoch(self, examples: Examples) -> int:
        """How many rows of batches the examples make."""
        return examples.packed_rows if isinstance(examples, Packed) else len(examples)

    def batches(self, examples: Examples, buckets: tuple[int, ...], batch_size: int, **where: Any) -> Iterator[dict[str, Any]]:
        """The batches of an epoch; the arguments are those of `ftjax.data.batches.batches`.

        Packed rows to learn from, in an order by seed; documents are scored each in a row of its own.
        """
        if isinstance(examples, Packed) and (examples.batch_rows or where["seed"] is not None):
            return packed_batches(examples, batch_size, **{name: v for name, v in where.items() if name != "labeled_rows"})
        return batches(examples, buckets, batch_size, **where)

    def prompts(self, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        """The tokens after which the model goes on writing, where the task `writes`."""
        raise NotImplementedError

    def made_up(self, examples: Examples) -> Examples:
        """Examples whose tokens and classes were made up, with labels of the shape that the loss takes."""
        return examples

    def loss(self, model: Model) -> Loss:
        """L, the labelled term."""
        raise NotImplementedError

    def outputs(self, model: Model) -> Callable[[Params, Batch], jax.Array]:
        """A step (params, batch) -> what the model says of each row, dropout off: float32 (batch, ...)."""
        return predict_step(model)

    # Scores and what is shown

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        """The metrics over the rows that have a label, exact; `loss` first. At least one row has a label."""
        raise NotImplementedError

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        """What `ftjax predict` prints of each row: {"text", "prediction", ...}, JSON-ready."""
        raise NotImplementedError

    def given(self, rows: Rows) -> list[Any]:
        """The labels of the rows, in the form of their predictions; None where a row has none."""
        return list(rows.labels or [None] * len(rows.texts))

    def told(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl: a prediction each, with the `label` that was given beside it."""
        lines = zip(self.predictions(outputs, rows, examples), self.given(rows), strict=True)
        return [{"text": line["text"], "label": label, **line} for line, label in lines]

    @staticmethod
    def wrong(label: Any, prediction: Any) -> float:
        """How wrong a prediction is, 0: not at all. The report shows the worst ones."""
        return float(label != prediction)

    @staticmethod
    def say(value: Any) -> str:
        """A label or a prediction in words."""
        return str(value)
