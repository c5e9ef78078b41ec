"""Examples -> rows of one length, several examples a row, told apart by segment ids.

Padding wastes what it takes; packed rows have almost none, and one length is one compilation. An example sees only itself
(`segment_ids`, see `ftjax.models.layers.segment_positions`), so its loss is that of a row of its own. Documents to be continued
are cut into pieces first.
"""

from __future__ import annotations

import dataclasses
import functools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np

from ftjax.data.batches import MULTIPLE, no_label
from ftjax.data.tokenize import Examples
from ftjax.objectives import NO_LABEL


@dataclasses.dataclass(frozen=True)
class Packed(Examples):
    """Examples that share rows of `row_length` tokens. Of documents cut into pieces, `rows` says which one each is of.

    most: how many may share a row; 0: any number, and none has a number in a batch. batch_rows: of every batch; 0: as many as
    --batch-size says.
    """

    row_length: int = 0
    most: int = 0
    batch_rows: int = 0

    @functools.cached_property
    def packed_rows(self) -> int:
        """How many rows hold them all, the same in every epoch."""
        return len(pack(self.lengths, self.row_length, self.most, seed=None))


FULL = 0.99  # of the tokens of packed rows are none of padding


def rows_for(lengths: np.ndarray, batch_size: int) -> tuple[int, int]:
    """(rows of a batch, their length) so that about `batch_size` examples of these lengths share them.

    The shorter the rows, the less attention costs: there are as many as can be long enough for any example, but a multiple of
    4, or of 8 from 16 on, which devices share evenly; and of a length that gives as many tokens as so many examples
    have on average.
    """
    mean, longest = float(lengths.mean()), -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    most = max(1, int(batch_size * mean / longest))
    rows = most // (unit := 1 if most < 4 else 4 if most < 16 else 8) * unit
    return rows, max(longest, MULTIPLE * round(batch_size * mean / (FULL * rows * MULTIPLE)))


def packed(examples: Examples, batch_size: int) -> Packed:
    """Examples to share rows, about `batch_size` of them a batch.

    A row has room for twice as many as it has on average: short ones, which could fill rows by themselves, go with long ones.
    """
    rows, length = rows_for(examples.lengths, batch_size)
    most = max(1, round(2 * length / examples.lengths.mean()))
    return _sharing(examples, length, most, rows)


def packed_like(examples: Examples, train: Packed) -> Packed:
    """Examples to score in rows as those that are learnt from, or in longer ones where one of them does not fit."""
    length = max(train.row_length, -(-int(examples.lengths.max()) // MULTIPLE) * MULTIPLE)
    most = -(-train.most * length // train.row_length)
    return _sharing(examples, length, most, train.batch_rows)


def _sharing(examples: Examples, row_length: int, most: int, batch_rows: int) -> Packed:
    values = {field.name: getattr(examples, field.name) for field in dataclasses.fields(examples)}
    return Packed(**values, row_length=row_length, most=most, batch_rows=batch_rows).knowing(examples.labeled)


def batch_rows(examples: Examples, batch_size: int) -> int:
    """Rows of a batch: `batch_size`, unless about so many examples share fewer rows."""
    return (isinstance(examples, Packed) and examples.batch_rows) or batch_size


def cut(length: int, most: int) -> list[tuple[int, int]]:
    """The pieces [start, end) of a document of `length` tokens, at most `most` each.

    A piece begins with the last token of the one before it, so that every token but the document's first is predicted
    exactly once, from what precedes it in its piece.
    """
    return [(start, min(start + most, length)) for start in range(0, max(length - 1, 1), most - 1)]


def documents(tokens: Sequence[Sequence[int]], learnt: Sequence[Sequence[int]] | None, most: int, **counts: int) -> Packed:
    """Documents as examples of at most `most` tokens whose labels are the tokens to predict.

    learnt: for every token whether it is one of them; None: all are. The first of a piece never is, since nothing before it
    predicts it. counts: fields of `Examples`.
    """
    pieces = [(number, start, end) for number, row in enumerate(tokens) for start, end in cut(len(row), most)]
    starts = np.concatenate([[0], np.cumsum([end - start for _, start, end in pieces], dtype=np.int64)])
    joined = np.concatenate([np.asarray(tokens[number][start:end], np.int32) for number, start, end in pieces])
    labels = joined
    if learnt is not None:
        chosen = np.concatenate([np.asarray(learnt[number][start:end], bool) for number, start, end in pieces])
        labels = np.where(chosen, joined, NO_LABEL)
    labels = labels.copy()
    labels[starts[:-1]] = NO_LABEL
    rows = np.array([number for number, _, _ in pieces], np.int64)
    return Packed(joined, np.zeros_like(joined), starts, labels, per_token=True, rows=rows, row_length=most, **counts)  # type: ignore[arg-type]


def pack(lengths: np.ndarray, row_length: int, most: int = 0, *, seed: int | None, epoch: int = 0) -> list[np.ndarray]:
    """Which examples share a row: their numbers for each row, at most `most`. Every example is in exactly one.

    Best-fit decreasing: from the longest to the shortest, each goes where it leaves the least room; without `most` at most 11/9
    of the fewest rows possible, and one (Johnson et al., 1974). By (seed, epoch) examples of equal length change places, and
    the rows theirs; seed None keeps the order of the examples. The number of rows follows from the lengths alone, so that it
    is the same in every epoch.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows: list[list[int]] = []
    rooms: list[int] = []  # how much is left, ascending, of the rows that have any
    having: dict[int, list[int]] = {}  # which rows have so much left
    for piece in order.tolist():
        length = int(lengths[piece])
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = having[room].pop()
            if not having[room]:
                del having[room], rooms[at]
            rows[row].append(piece)
        else:
            room, row = row_length, len(rows)
            rows.append([piece])
        if (left := room - length) and (not most or len(rows[row]) < most):
            if left not in having:
                insort(rooms, left)
            having.setdefault(left, []).append(row)
    found = [np.array(row) for row in rows]
    return found if rng is None else [found[i] for i in rng.permutation(len(found))]


def make_packed(
    examples: Packed, rows: Sequence[np.ndarray], first: int, batch_size: int, pad_token_id: int
) -> dict[str, np.ndarray]:
    """Packed rows as an `ftjax.objectives.Batch` of shape (batch_size, row_length), filled up at the bottom.

    Besides what `ftjax.data.batches.make_batch` gives: `segment_ids`, 1, 2, ... for the examples of a row and 0 for padding.
    `example_ids` are (batch_size, most); where each example has a label of its own so are `labels`, and there are `reads`, the
    positions of their first tokens. Of documents it is rows that have numbers, (batch_size,). first: that of the first row.
    """
    tokens, each = (batch_size, examples.row_length), (batch_size, examples.most)
    ids, types, segments = np.full(tokens, pad_token_id, np.int32), np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    reads, numbers = np.zeros(each, np.int32), np.full(each, -1, np.int32)
    dtype, shape = examples.labels.dtype, tokens if examples.per_token else (*each, *examples.labels.shape[1:])
    labels = np.full(shape, no_label(dtype), dtype)
    for i, row in enumerate(rows):
        at = 0
        for place, example in enumerate(row):
            start, end = examples.starts[example], examples.starts[example + 1]
            here = slice(at, at + end - start)
            ids[i, here], types[i, here] = examples.tokens[start:end], examples.token_types[start:end]
            segments[i, here] = place + 1
            if examples.per_token:
                labels[i, here] = examples.labels[start:end]
            else:
                labels[i, place], reads[i, place] = examples.labels[example], at
            if examples.most:
                numbers[i, place] = example
            at += end - start
    if not examples.most:
        numbers = np.arange(first, first + batch_size, dtype=np.int32)
        numbers[len(rows) :] = -1
    return {
        "input_ids": ids,
        "attention_mask": (segments > 0).astype(np.int32),
        "token_type_ids": types,
        "labels": labels,
        "example_ids": numbers,
        "segment_ids": segments,
        **({} if examples.per_token else {"reads": reads}),
    }


def packed_batches(
    examples: Packed,
    batch_size: int,
    *,
    pad_token_id: int,
    seed: int | None,
    epoch: int = 0,
    start: int = 0,
    part: slice | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch from number `start` on. part: which rows of each are made; None: all."""
    own = slice(0, batch_size) if part is None else part
    rows = pack(examples.lengths, examples.row_length, examples.most, seed=seed, epoch=epoch)
    for first in range(start * batch_size, len(rows), batch_size):
        made = rows[first : first + batch_size][own]
        yield make_packed(examples, made, first + own.start, own.stop - own.start, pad_token_id)
