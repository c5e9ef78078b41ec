"""Training without the words that no text has: their rows of the table of embeddings are set aside, and put back at the end.

Rows that nothing looks up have no gradient. Their moments stay 0, and AdamW (Loshchilov & Hutter, 2019) only shrinks them,

    p <- (1 - rate * decay) * p,

all by the same factor. A table of the words that are looked up, and of one row of ones that is not, therefore ends as the whole
table would, but for rounding: what has become of the ones is what the rows set aside are multiplied by.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Self, TypeVar

import numpy as np

from ftjax.data.tokenize import Examples, Pieces, arrays_of
from ftjax.models import Params, build
from ftjax.objective import Vocabulary
from ftjax.pretrained.load import Pretrained
from ftjax.processes import fetch

MULTIPLE = 128
"""The smaller table has a multiple of so many rows, as most tables of models have; those left over are ones, too."""

E = TypeVar("E", bound=Examples)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The words that a run's texts have, numbered anew from 0 on.

    ids: of these words in the whole vocabulary, ascending. whole: the model as it was. table: its embeddings, on the host.
    """

    ids: np.ndarray
    whole: Pretrained
    table: np.ndarray

    @classmethod
    def of(cls, examples: Iterable[Examples], vocabulary: Vocabulary, whole: Pretrained) -> Self:
        """The words of these examples and what the vocabulary names, for a model as it was loaded."""
        there = np.zeros(whole.model.config.vocab_size, bool)
        if (padding := getattr(whole.model.config, "padding_id", None)) is not None:
            there[: padding + 1] = True  # it keeps its number, from which positions are counted
        named = (vocabulary.pad_token_id, vocabulary.mask_token_id, *vocabulary.special_ids)
        found = [part for e in examples for part in arrays_of(e.tokens)]
        for tokens in (*found, np.array([token for token in named if token is not None])):
            there[np.minimum(tokens, len(there) - 1)] = True  # an id beyond the table is looked up in its last row
        return cls(np.flatnonzero(there), whole, fetch(whole.params[table_name(whole)]))

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The new number of every id of the vocabulary, int32; of one that was not seen, -1."""
        numbers = np.full(len(self.table), -1, np.int32)
        numbers[self.ids] = np.arange(len(self.ids))
        return numbers

    def new(self, ids: np.ndarray | int) -> np.ndarray:
        """The new numbers of ids, of the same shape."""
        return np.asarray(self.numbers[np.minimum(ids, len(self.numbers) - 1)])

    def renumbered(self, examples: E) -> E:
        """Examples by the new numbers."""
        new = [self.new(part) for part in arrays_of(examples.tokens)]
        tokens = new[0] if isinstance(examples.tokens, np.ndarray) else Pieces(new)
        return dataclasses.replace(examples, tokens=tokens).knowing(examples.labeled)

    def vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        """What losses must know, by the new numbers. Whole words, which masked language modelling asks for, are not told."""

        def decode(tokens: Sequence[int]) -> str:
            return vocabulary.decode(self.ids[list(tokens)].tolist())

        mask = vocabulary.mask_token_id
        return Vocabulary(
            pad_token_id=int(self.new(vocabulary.pad_token_id)),
            mask_token_id=None if mask is None else int(self.new(mask)),
            special_ids=tuple(sorted({int(self.new(token)) for token in vocabulary.special_ids})),
            continuations=b"",
            decode=decode,
        )

    @property
    def pretrained(self) -> Pretrained:
        """The model whose table has the rows of these words, then ones."""
        rows = -(-(len(self.ids) + 1) // MULTIPLE) * MULTIPLE
        ones = np.ones((rows - len(self.ids), self.table.shape[1]), self.table.dtype)
        model, config = self.whole.model, dataclasses.replace(self.whole.model.config, vocab_size=rows)
        built = build(config, **dict(model.heads), lora=model.lora, in_4bit=model.in_4bit)
        small = dataclasses.replace(model, config=config, graph=built.graph, shapes=built.shapes)
        params = self.whole.params | {table_name(self.whole): np.concatenate([self.table[self.ids], ones])}
        return dataclasses.replace(self.whole, model=small, params=params)

    def put_back(self, params: Params) -> Params:
        """The parameters with the whole table, of those that a model of these words has come to."""
        name = table_name(self.whole)
        trained = np.asarray(params[name])
        table = self.table * trained[-1]
        table[self.ids] = trained[: len(self.ids)]
        return params | {name: table}


def table_name(pretrained: Pretrained) -> str:
    """The parameter that words are looked up in."""
    return f"{pretrained.model.config.parts[0]}.embeddings.word.embedding"
