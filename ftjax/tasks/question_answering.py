"""The answer to a question is a span of a context, or there is none.

SQuAD: Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250, and 2018, https://arxiv.org/abs/1806.03822.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np

from ftjax.data.files import Reader, Rows
from ftjax.data.parts import Part
from ftjax.data.tables import Table, file_kind, kind_of, load_table, opened, shown
from ftjax.data.tokenize import Examples, tokenized
from ftjax.errors import InputError
from ftjax.evaluation import softmax
from ftjax.models import Model, Params
from ftjax.models.body import Classifier
from ftjax.models.names import SPANS
from ftjax.objectives import NO_LABEL, Batch, Loss
from ftjax.objectives.span import Span, span_logits
from ftjax.pretrained.load import saved_class, unnamed
from ftjax.tasks.task import LOSS, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST = 30  # tokens of an answer, as in BERT's own predictions
Answers = tuple[tuple[str, int], ...]
"""The answers that people gave: the text of each, and the character of the context at which it begins; () if there is none."""


# Rows


def load_squad(path: Path, part: Part | None = None) -> Table:
    """As `load_table`; SQuAD's own files, objects with articles, paragraphs and their questions, are read as they are."""
    if file_kind(path) == ".json":
        try:
            with opened(path, "rt", encoding="utf-8-sig") as file:
                content = json.load(file)
        except (ValueError, RecursionError, OSError, EOFError):  # what is wrong, `load_table` says
            content = None
        if isinstance(content, dict) and isinstance(content.get("data"), list):
            return squad_table(content["data"], path).within(part)
    return load_table(path, part)


def squad_table(articles: list[Any], path: Path) -> Table:
    """The questions of all articles as the columns question, context and answers."""
    try:
        rows = [
            (question["question"], paragraph["context"], question.get("answers"))
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{shown(path)}: not in SQuAD's format ({type(error).__name__}: {error}); expected data, paragraphs, context, qas, "
            "question and answers."
        ) from None
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("question", "context", "answers"))}
    return Table(list(columns), columns.__getitem__, len(rows))


def read_answers(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> Answers | None:
    """A cell as answers: {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}; null is no label."""
    if value is None:
        return None
    try:
        found = [(a["text"], a["answer_start"]) for a in value] if isinstance(value, list) else pairs(value)
        if all(isinstance(text, str) and isinstance(at, int) for text, at in found):
            return tuple(found)
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(
        f"{source}: the answers of row {row} ({kind_of(value)}) are not as in SQuAD: "
        '{"text": [...], "answer_start": [...]}, with lists of the same length.'
    )


def pairs(value: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Texts and beginnings side by side."""
    return list(zip(value["text"], value["answer_start"], strict=True))


# Scores: as SQuAD's official script has them


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same once normalised."""
    return float(normalised(prediction) == normalised(answer))


def word_f1(prediction: str, answer: str) -> float:
    """The harmonic mean of the shares of words in common; of two that are not both empty, 0 where one is."""
    found, given = normalised(prediction).split(), normalised(answer).split()
    common = sum((collections.Counter(found) & collections.Counter(given)).values())
    if not found or not given:
        return float(found == given)
    return 2 * common / (len(found) + len(given))


def best_span(logits: np.ndarray, allowed: np.ndarray) -> tuple[float, int, int]:
    """(score, first token, last token) of the likeliest span of at most LONGEST allowed tokens; the score is -inf without one.

    logits: float (2, tokens), of the first and of the last token; the score is their sum. allowed: bool (tokens,).
    """
    first, last = (np.where(allowed, row, -np.inf) for row in logits.astype(np.float64))
    sums = first[:, None] + last[None, :]
    number = np.arange(len(allowed))
    length = number[None, :] - number[:, None]
    sums = np.where((length >= 0) & (length < LONGEST), sums, -np.inf)
    at = int(sums.argmax())
    return float(sums.flat[at]), at // len(allowed), at % len(allowed)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A prediction: the text, its first character in the context (None: there is no answer) and its probability."""

    text: str
    start: int | None
    score: float


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
    """A long context is cut into windows that overlap; a window without the answer points at its first token, [CLS].

    window_overlap: tokens of the context that a window has in common with the one before; None: a third of max_length.
    unanswerable: whether some training rows have no answer, so that none may be predicted.
    """

    window_overlap: int | None = None
    unanswerable: bool = False

    name: ClassVar[str] = "question-answering"
    metrics: ClassVar[dict[str, Metric]] = {"f1": Metric("F1"), "exact_match": Metric("exact match"), "loss": LOSS}
    reader: ClassVar[Reader] = Reader("question", "context", "answers", load_squad, label=read_answers)
    classifier: ClassVar[Classifier | None] = "span"
    num_labels: ClassVar[int | None] = 2

    @classmethod
    def of(cls, settings: Any) -> Self:
        overlap = getattr(settings, "window_overlap", None)
        if overlap is not None and overlap < 0:
            raise InputError(f"--window-overlap {overlap}: must be 0 or a positive number.")
        return cls(window_overlap=overlap)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return saved_class(raw_config).endswith(SPANS)

    @classmethod
    def saved(cls, settings: Any, raw_config: dict[str, Any], labels: tuple[str, ...]) -> Self:
        unanswerable = raw_config.get("ftjax_unanswerable") is True
        return dataclasses.replace(cls.of(settings), labels=labels, unanswerable=unanswerable)

    def notes(self) -> dict[str, Any]:
        return {"ftjax_unanswerable": self.unanswerable}

    def checked(self, rows: Rows) -> Rows:
        if rows.pairs is None:
            raise InputError(
                f"{rows.source}: --task {self.name} needs a question and a context in each row: a file with columns for both."
            )
        for row, (context, answers) in enumerate(zip(rows.pairs, rows.labels or (), strict=False), start=1):
            for text, start in answers or ():
                if not text or start < 0 or context[start : start + len(text)] != text:
                    raise InputError(
                        f"{rows.source}: row {row}: its context has {context[max(start, 0) :][: len(text)]!r} at character "
                        f"{start}, not the answer {text!r}."
                    )
        return rows

    def occurring(self, rows: Rows) -> list[Any]:
        return [[]] if any(answers == () for answers in rows.labels or ()) else []

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        unanswerable = any(answers == () for part in rows for answers in part.labels or ())
        return dataclasses.replace(self, labels=unnamed(2), unanswerable=unanswerable)

    # Tokens, model, loss

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        """An example is a window. Its label is where the first of the answers is, or [CLS] where it has none whole."""
        overlap = max_length // 3 if self.window_overlap is None else self.window_overlap
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
        for row, ids in enumerate(tokenizer(rows.texts, add_special_tokens=False)["input_ids"], start=1):
            if room - len(ids) <= overlap:
                raise InputError(
                    f"{rows.source}: the question of row {row} has {len(ids)} tokens; of --max-length {max_length} they leave "
                    f"windows of {max(room - len(ids), 0)} tokens, which cannot overlap by {overlap}: "
                    "raise --max-length or lower --window-overlap."
                )
        assert rows.pairs is not None
        examples = tokenized(rows.texts, rows.pairs, tokenizer, max_length, spans=True, overlap=overlap)
        assert examples.rows is not None and examples.spans is not None
        labels = np.full((len(examples), 2), NO_LABEL, np.int32)
        for window, row in enumerate(examples.rows if rows.labels else ()):
            answers = rows.labels[row] if rows.labels else None
            if answers is not None:
                labels[window] = tokens_of(answers, examples.spans[examples.at(window)])
        return dataclasses.replace(examples, labels=labels)

    def made_up(self, examples: Examples) -> Examples:
        return dataclasses.replace(examples, labels=np.broadcast_to(np.int32(0), (len(examples), 2)))

    def loss(self, model: Model) -> Loss:
        return Span(model)

    def outputs(self, model: Model) -> Callable[[Params, Batch], jax.Array]:
        """float32 (batch, 2, length)."""
        return lambda params, batch: span_logits(model, params, batch, None)

    # Scores and what is shown

    def answers(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[Answer]:
        """The best span over all windows of each row, or none where [CLS] scores higher in every window of it.

        The score of no answer is the lowest over the windows, as in BERT's script for SQuAD 2.0: each may have missed it.
        """
        assert rows.pairs is not None and examples.rows is not None and examples.spans is not None
        best = [Answer("", None, 0.0)] * len(rows.texts)
        highest, none = np.full(len(best), -np.inf), np.full(len(best), np.inf)
        nothing = np.zeros(len(best))
        for window, row in enumerate(examples.rows):
            spans = examples.spans[examples.at(window)]
            logits = outputs[window][:, : len(spans)]
            score, first, last = best_span(logits, spans[:, 1] > spans[:, 0])
            probabilities = softmax(logits)
            if (null := float(logits[:, 0].astype(np.float64).sum())) < none[row]:
                none[row], nothing[row] = null, probabilities[0, 0] * probabilities[1, 0]
            if score > highest[row]:
                start, end = int(spans[first, 0]), int(spans[last, 1])
                sure = float(probabilities[0, first] * probabilities[1, last])
                highest[row], best[row] = score, Answer(rows.pairs[row][start:end], start, sure)
        if not self.unanswerable:
            return best
        return [
            Answer("", None, float(nothing[row])) if none[row] > highest[row] else answer for row, answer in enumerate(best)
        ]

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        """exact_match and f1 of the question's best answer, over the questions; the loss over the windows."""
        assert rows.labels is not None
        found: dict[str, list[float]] = {"exact_match": [], "f1": []}
        for answer, answers in zip(self.answers(outputs, rows, examples), rows.labels, strict=True):
            if answers is not None:
                given = [text for text, _ in answers if normalised(text)] or [""]
                found["exact_match"].append(max(exact_match(answer.text, text) for text in given))
                found["f1"].append(max(word_f1(answer.text, text) for text in given))
        losses = [
            -np.log(np.maximum(softmax(outputs[window])[(0, 1), labels], np.finfo(np.float64).tiny)).mean()
            for window, labels in enumerate(examples.labels)
            if labels[0] >= 0
        ]
        return {"loss": float(np.mean(losses)), **{name: float(np.mean(values)) for name, values in found.items()}}

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        """{"text": the question, "prediction", "start", "score"}: the answer, its first character in the context (null: there
        is no answer) and its probability.
        """
        found = zip(rows.texts, self.answers(outputs, rows, examples), strict=True)
        return [{"text": text, "prediction": a.text, "start": a.start, "score": a.score} for text, a in found]

    def given(self, rows: Rows) -> list[Any]:
        """The texts of the answers; [] where there is none."""
        return [
            None if answers is None else [text for text, _ in answers] for answers in rows.labels or [None] * len(rows.texts)
        ]

    @staticmethod
    def wrong(label: list[str], prediction: str) -> float:
        """1 less F1."""
        return 1.0 - max(word_f1(prediction, text) for text in label or [""])

    @staticmethod
    def say(value: list[str] | str) -> str:
        texts = [value] if isinstance(value, str) else value
        return " / ".join(dict.fromkeys(filter(None, texts))) or "no answer"


def tokens_of(answers: Answers, spans: np.ndarray) -> tuple[int, int]:
    """The first and the last token of the first answer, (0, 0) where it is not whole among them; see `Examples.spans`."""
    if not answers:
        return 0, 0
    text, start = answers[0]
    end = start + len(text)
    inside = np.flatnonzero((spans[:, 1] > spans[:, 0]) & (spans[:, 0] < end) & (spans[:, 1] > start))
    whole = len(inside) and spans[inside[0], 0] <= start and spans[inside[-1], 1] >= end
    return (int(inside[0]), int(inside[-1])) if whole else (0, 0)


TASK = QuestionAnswering
