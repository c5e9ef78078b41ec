"""Sources and targets -> batches padded to a few lengths on both sides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ftjax.data.batches import choose_buckets, make_batch
from ftjax.data.tokenize import Examples

TARGET_BUCKETS = 3  # each is one more program for every source length


def target_lengths(labels: np.ndarray) -> np.ndarray:
    """Tokens of each target, int64 (rows,), of labels (rows, longest) that are -100 behind them; at least 1."""
    return np.maximum((labels >= 0).sum(1), 1)


def plan_pairs(
    lengths: np.ndarray, buckets: tuple[tuple[int, ...], ...], batch_size: int, *, seed: int | None, epoch: int = 0
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """(a bucket length for each side, row numbers) of every batch of an epoch; each row is in exactly one.

    lengths: int (rows, sides); buckets: those of each side, ascending. Rows that need the same buckets share a batch. What is
    left over of them joins those that need the next larger ones, in batches that hold both, so that at most one batch of an
    epoch has fewer than batch_size rows. Shuffled as in `ftjax.data.batches.plan_epoch`.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    needs = np.stack([np.asarray(side)[np.searchsorted(side, lengths[:, i])] for i, side in enumerate(buckets)], axis=1)
    shapes, which = np.unique(needs[order], axis=0, return_inverse=True)
    left = np.empty(0, np.int64)
    chunks: list[np.ndarray] = []
    for number in range(len(shapes)):
        rows = np.concatenate([left, order[which.reshape(-1) == number]])
        full = len(rows) // batch_size * batch_size
        chunks += list(rows[:full].reshape(-1, batch_size))
        left = rows[full:]
    chunks += [left] if len(left) else []
    batches = [(tuple(needs[rows].max(0).tolist()), rows) for rows in chunks]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def pair_batches(
    examples: Examples,
    buckets: tuple[int, ...],
    batch_size: int,
    *,
    pad_token_id: int,
    seed: int | None,
    epoch: int = 0,
    start: int = 0,
    part: slice | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch from number `start` on; buckets are those of the sources. `labels` is int32 (batch, target).

    part: which rows of each batch are made; None: all.
    """
    own = slice(0, batch_size) if part is None else part
    targets = target_lengths(examples.labels)
    both = np.stack([examples.lengths, targets], axis=1)
    plan = plan_pairs(both, (buckets, choose_buckets(targets, most=TARGET_BUCKETS)), batch_size, seed=seed, epoch=epoch)
    for (source, target), rows in plan[start:]:
        batch = make_batch(examples, rows[own], source, own.stop - own.start, pad_token_id)
        labels = batch["labels"][:, :target]
        yield batch | {"labels": np.pad(labels, ((0, 0), (0, target - labels.shape[1])), constant_values=-100)}
