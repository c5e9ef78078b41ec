"""Each word of a sentence has a tag: O, or B-TYPE or I-TYPE, the first and the other words of an entity (CoNLL-2003)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ftjax.data.files import Reader, Rows
from ftjax.data.files import text as read_text
from ftjax.data.parts import Part
from ftjax.data.tables import Table, conll_table, kind_of, load_table, whole_only
from ftjax.data.tokenize import Examples, tokenized
from ftjax.errors import InputError
from ftjax.evaluation import softmax
from ftjax.models import Model
from ftjax.models.body import Classifier
from ftjax.models.names import TOKENS
from ftjax.objectives import NO_LABEL, Loss
from ftjax.objectives.classification import Classification
from ftjax.pretrained.load import saved_class
from ftjax.tasks.task import LOSS, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OUTSIDE = "O"
TAG = re.compile(r"O|[BI]-\S+")


def load_sentences(path: Path, part: Part | None = None) -> Table:
    """As `load_table`; lines of text are read as .conll where the first has a TAB."""
    table = load_table(path, part)
    if not table.plain:
        return table
    whole_only(path, part)
    lines = list(table.cells("text"))
    return conll_table(lines, path) if "\t" in next(filter(str.strip, lines), "") else table


def read_words(value: Any, source: str, row: int) -> str | tuple[str, ...]:
    """A cell as words: those of a list, or a text, whose words white space divides."""
    if not isinstance(value, list):
        return read_text(value, source, row)
    for number, word in enumerate(value, start=1):
        if isinstance(word, bool) or not isinstance(word, str | int | float):
            raise InputError(f"{source}: word {number} of row {row} is {kind_of(word)}, not a string.")
    return tuple(read_text(word, source, row) for word in value)


def read_tags(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> tuple[str, ...] | None:
    """A cell as tags: a list, or a text with spaces between them; null is none, and so is a list without any."""
    tags = value.split() if isinstance(value, str) else value
    if not tags and not isinstance(tags, int | float):
        return None
    if not isinstance(tags, list):
        raise InputError(f"{source}: the tags of row {row} are {kind_of(tags)}, not a list with a tag a word.")
    numbered = classes is not None and all(isinstance(tag, int) and 0 <= tag < len(classes) for tag in tags)
    tags = [classes[int(tag)] for tag in tags] if numbered and classes else tags
    for number, tag in enumerate(tags, start=1):
        if not (isinstance(tag, str) and TAG.fullmatch(tag)):
            raise InputError(f"{source}: tag {number} of row {row} is {tag!r}; tags are O, B-TYPE or I-TYPE, such as B-person.")
        before = tags[number - 2] if number > 1 else OUTSIDE
        if tag.startswith("I-") and before[1:] != tag[1:]:
            raise InputError(
                f"{source}: tag {number} of row {row} is {tag} after {before if number > 1 else 'no other'}; "
                f"an entity begins with B-{tag[2:]}."
            )
    return tuple(tags)


def sentence(text: str | tuple[str, ...]) -> tuple[str, list[tuple[int, int]]]:
    """(the text, the characters [start, end) of each word in it); the words of a list are joined by spaces."""
    if isinstance(text, str):
        return text, [word.span() for word in re.finditer(r"\S+", text)]
    ends = np.cumsum([len(word) + 1 for word in text]) - 1
    return " ".join(text), [(int(end) - len(word), int(end)) for word, end in zip(text, ends, strict=True)]


def first_tokens(words: list[tuple[int, int]], spans: np.ndarray) -> np.ndarray:
    """The first token of each word, int64 (words,), -1 where none stands for any of its characters.

    spans: int (tokens, 2), the characters of each token in their order, empty for those that stand for none. A token may
    begin with the space before its word, and a space may be a token of its own.
    """
    at = np.full(len(words), -1)
    token, used = 0, (spans[:, 1] > spans[:, 0]).nonzero()[0]
    for word, (start, end) in enumerate(words):
        while token < len(used) and spans[used[token], 1] <= start:
            token += 1
        if token < len(used) and spans[used[token], 0] < end:
            at[word] = used[token]
    return at


@dataclasses.dataclass(frozen=True)
class TokenClassification(Task):
    """The first token of a word has its tag, the others have none; a word that the model does not see counts as O."""

    name: ClassVar[str] = "token-classification"
    metrics: ClassVar[dict[str, Metric]] = {
        "f1": Metric("F1"),
        "precision": Metric("precision"),
        "recall": Metric("recall"),
        "accuracy": Metric("tag accuracy"),
        "loss": LOSS,
    }
    reader: ClassVar[Reader] = Reader("tokens", None, "tags", load_sentences, read_words, read_tags)
    classifier: ClassVar[Classifier | None] = "every-token"
    packages: ClassVar[tuple[str, ...]] = ("seqeval.metrics",)
    packs: ClassVar[bool] = True

    @classmethod
    def of(cls, settings: Any) -> Self:
        """InputError for a second text, and where the package that scores entities is missing."""
        if getattr(settings, "text_pair_column", None) is not None:
            raise InputError(f"--text-pair-column is not for --task {cls.name}, which tags one text.")
        try:
            import seqeval  # noqa: F401
        except ImportError:
            raise InputError(f"--task {cls.name} needs the package seqeval; install it: pip install 'ftjax[ner]'.") from None
        return super().of(settings)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return saved_class(raw_config).endswith(TOKENS)

    def checked(self, rows: Rows) -> Rows:
        for row, (text, tags) in enumerate(zip(rows.texts, rows.labels or (), strict=False), start=1):
            if tags is not None and len(tags) != (words := len(sentence(text)[1])):
                raise InputError(f"{rows.source}: row {row} has {words} words but {len(tags)} tags.")
        return rows

    def occurring(self, rows: Rows) -> list[Any]:
        return [[tag] for tag in sorted({tag for tags in rows.labels or () for tag in tags or ()})]

    def fitted(self, rows: Sequence[Rows], declared: tuple[str, ...]) -> Self:
        """`labels`: O, then a B- and an I- tag of every type that occurs, in the order of the alphabet."""
        occurring = {tag for part in rows for tags in part.labels or () for tag in tags or ()}
        types = sorted({tag[2:] for tag in occurring if tag != OUTSIDE})
        if not types:
            raise InputError(f"{rows[0].source}: every tag is O; training needs some entities.")
        labels = (OUTSIDE, *(f"{place}-{name}" for name in types for place in "BI"))
        return dataclasses.replace(self, labels=declared if {OUTSIDE, *occurring} <= set(declared) else labels)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        number = {tag: i for i, tag in enumerate(self.labels)}
        texts = [sentence(text) for text in rows.texts]
        examples = tokenized([text for text, _ in texts], None, tokenizer, max_length, spans=True)
        labels = np.full(len(examples.tokens), NO_LABEL, np.int32)
        for row, tags in enumerate(rows.labels or ()):
            if tags is None:
                continue
            if unknown := [tag for tag in tags if tag not in number]:
                raise InputError(
                    f"{rows.source}: row {row + 1} has the tag {unknown[0]!r}, which training has not seen; "
                    f"known: {', '.join(self.labels)}."
                )
            assert examples.spans is not None
            first = first_tokens(texts[row][1], examples.spans[examples.at(row)])
            known = first >= 0
            labels[examples.starts[row] + first[known]] = np.array([number[tag] for tag in tags])[known]
        return dataclasses.replace(examples, labels=labels, per_token=True)

    def made_up(self, examples: Examples) -> Examples:
        labels = np.broadcast_to(np.int32(0), examples.tokens.shape)
        return dataclasses.replace(examples, labels=labels, per_token=True)

    def loss(self, model: Model) -> Loss:
        return Classification(model)

    def words(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[tuple[str, list[tuple[int, int]], np.ndarray]]:
        """(text, words, the probability of each tag for each word, float64 (words, tags)); of unseen words O has all."""
        assert examples.spans is not None
        found = []
        for row, text in enumerate(rows.texts):
            shown, words = sentence(text)
            first = first_tokens(words, examples.spans[examples.at(row)])
            probabilities = softmax(outputs[row])[first]
            probabilities[first < 0] = np.arange(len(self.labels)) == self.labels.index(OUTSIDE)
            found.append((shown, words, probabilities))
        return found

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        """F1, precision and recall of whole entities, type and all (Tjong Kim Sang and De Meulder, 2003), as seqeval counts."""
        from seqeval.metrics import f1_score, precision_score, recall_score

        given, predicted, losses = [], [], []
        for row, (_, _, probabilities) in enumerate(self.words(outputs, rows, examples)):
            if rows.labels is None or rows.labels[row] is None:
                continue
            given.append(list(rows.labels[row]))
            predicted.append([self.labels[number] for number in probabilities.argmax(-1)])
            labels = examples.labels[examples.at(row)]
            seen = np.flatnonzero(labels >= 0)
            losses.append(-np.log(np.maximum(softmax(outputs[row])[seen, labels[seen]], np.finfo(np.float64).tiny)))
        right = [a == b for these, those in zip(given, predicted, strict=True) for a, b in zip(these, those, strict=True)]
        return {
            "loss": float(np.concatenate(losses).mean()),
            "f1": float(f1_score(given, predicted, zero_division=0)),
            "precision": float(precision_score(given, predicted, zero_division=0)),
            "recall": float(recall_score(given, predicted, zero_division=0)),
            "accuracy": float(np.mean(right)),
        }

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        """{"text", "prediction": [{"entity", "text", "start", "end", "score"}, ...]}: characters [start, end) of the text.

        score: the mean probability of the entity's tags.
        """
        found = []
        for text, words, probabilities in self.words(outputs, rows, examples):
            tags = [self.labels[number] for number in probabilities.argmax(-1)]
            sure = probabilities.max(-1, initial=0.0)
            spans = entities(tags)
            scores = [float(sure[first : last + 1].mean()) for _, first, last in spans]
            told = [{**entity, "score": score} for entity, score in zip(shown(text, words, spans), scores, strict=True)]
            found.append({"text": text, "prediction": told})
        return found

    def given(self, rows: Rows) -> list[Any]:
        found = zip(map(sentence, rows.texts), rows.labels or [None] * len(rows.texts), strict=True)
        return [None if tags is None else shown(text, words, entities(tags)) for (text, words), tags in found]

    @staticmethod
    def wrong(label: list[dict[str, Any]], prediction: list[dict[str, Any]]) -> float:
        """How many entities are in one and not in the other."""
        these, those = ({(e["entity"], e["start"], e["end"]) for e in part} for part in (label, prediction))
        return float(len(these ^ those))

    @staticmethod
    def say(value: list[dict[str, Any]]) -> str:
        return ", ".join(f"{entity['text']} ({entity['entity']})" for entity in value) or "none"


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, number of the first word, of the last one) of every entity; of predictions, where an I- tag may begin one."""
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(list(tags))


def shown(text: str, words: list[tuple[int, int]], spans: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """Entities for people and programs."""
    found = []
    for name, first, last in spans:
        start, end = words[first][0], words[last][1]
        found.append({"entity": name, "text": text[start:end], "start": start, "end": end})
    return found


TASK = TokenClassification
