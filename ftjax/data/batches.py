"""Examples -> batches of a few fixed shapes.

Rows of similar length share a batch, padded to the smallest bucket that holds them, so there is one compilation a
bucket and little padding. The order is a pure function of (seed, epoch): a resumed run needs only a number to go on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ftjax.data.tokenize import Examples
from ftjax.objectives import NO_LABEL

MULTIPLE = 8  # bucket lengths are multiples of this: friendly to vector units, and few


def choose_buckets(
    lengths: np.ndarray, *, most: int = 4, bucket_cost: float = 0.0, uses: np.ndarray | None = None
) -> tuple[int, ...]:
    """At most `most` bucket lengths that hold every row, with the least padding and compiling in total, ascending.

    bucket_cost: how many tokens cost as much as one more bucket, which must be compiled. uses: how often each row is
    run, (rows,); once by default.

    Exact, by dynamic programming over the multiples of 8: cost[b] is the fewest padded tokens for all rows up to
    length candidates[b] when that is the last bucket.
    """
    rounded = -(-lengths // MULTIPLE) * MULTIPLE
    candidates, which = np.unique(rounded, return_inverse=True)
    upto = np.concatenate([[0], np.bincount(which, uses).cumsum()])
    cost = candidates * upto[1:]
    chosen: list[tuple[int, ...]] = [(int(c),) for c in candidates]
    cheapest, best = cost[-1] + bucket_cost, chosen[-1]
    for number in range(2, min(most, len(candidates)) + 1):
        options = cost[None, :] + candidates[:, None] * (upto[1:][:, None] - upto[1:][None, :])
        options = np.where(np.tri(len(candidates), k=-1) > 0, options, np.inf)
        previous = options.argmin(1)
        better = options.min(1) < cost
        chosen = [(*chosen[p], int(c)) if b else old for p, c, b, old in zip(previous, candidates, better, chosen, strict=True)]
        cost = np.where(better, options.min(1), cost)
        if cost[-1] + number * bucket_cost < cheapest:
            cheapest, best = cost[-1] + number * bucket_cost, chosen[-1]
    return best


def plan_epoch(
    lengths: np.ndarray, buckets: tuple[int, ...], batch_size: int, *, seed: int | None, epoch: int = 0
) -> list[tuple[int, np.ndarray]]:
    """(bucket length, row numbers) of every batch of an epoch; each row is in exactly one.

    Rows are shuffled by (seed, epoch) before they are dealt to buckets, and the batches after; seed None keeps the
    order of the rows. What is left over in a bucket moves up to the next longer one, so at most one batch of an epoch
    has fewer than batch_size rows.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    bucket_of = np.searchsorted(buckets, lengths[order])
    left = np.empty(0, np.int64)
    batches: list[tuple[int, np.ndarray]] = []
    for number, bucket in enumerate(buckets):
        rows = np.concatenate([left, order[bucket_of == number]])
        full = len(rows) // batch_size * batch_size
        batches += [(bucket, chunk) for chunk in rows[:full].reshape(-1, batch_size)]
        left = rows[full:]
    if len(left):
        batches.append((buckets[-1], left))
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def plan_mixed_epoch(
    lengths: np.ndarray,
    labeled: np.ndarray,
    buckets: tuple[int, ...],
    batch_size: int,
    labeled_rows: int,
    *,
    seed: int,
    epoch: int = 0,
) -> list[tuple[int, np.ndarray]]:
    """As `plan_epoch`, with `labeled_rows` rows that have a label in every batch, whose others have none.

    labeled: bool (rows,). Every row without a label is in exactly one batch. Those with one come as often as that takes,
    each about as often as the others: whichever of those that fit has been used least, by chance among equals.
    """
    without, having = np.flatnonzero(~labeled), np.flatnonzero(labeled)
    batches = []
    rng = np.random.default_rng([seed, epoch, labeled_rows])
    rank = np.zeros(len(having))
    for bucket, rows in plan_epoch(lengths[without], buckets, batch_size - labeled_rows, seed=seed, epoch=epoch):
        fits = lengths[having] <= bucket
        if not fits.any():
            bucket = buckets[np.searchsorted(buckets, lengths[having].min())]
            fits = lengths[having] <= bucket
        chosen: list[int] = []
        while len(chosen) < labeled_rows:  # more than once around where fewer rows fit than are asked for
            least_used = np.where(fits, rank + rng.random(len(having)), np.inf).argsort()
            rows_now = least_used[: min(fits.sum(), labeled_rows - len(chosen))]
            rank[rows_now] += 1
            chosen += list(having[rows_now])
        batches.append((bucket, np.concatenate([chosen, without[rows]])))
    return batches


def make_batch(examples: Examples, rows: np.ndarray, length: int, batch_size: int, pad_token_id: int) -> dict[str, np.ndarray]:
    """The rows as an `ftjax.objectives.Batch` of shape (batch_size, length), padded on the right and at the bottom."""
    ids = np.full((batch_size, length), pad_token_id, np.int32)
    types = np.zeros((batch_size, length), np.int32)
    mask = np.zeros((batch_size, length), np.int32)
    for i, row in enumerate(rows):
        start, end = examples.starts[row], examples.starts[row + 1]
        ids[i, : end - start] = examples.tokens[start:end]
        types[i, : end - start] = examples.token_types[start:end]
        mask[i, : end - start] = 1
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": make_labels(examples, rows, length, batch_size),
        "example_ids": np.pad(rows.astype(np.int32), (0, batch_size - len(rows)), constant_values=-1),
    }
    if examples.teacher_scores is not None:
        batch["teacher_scores"] = np.pad(examples.teacher_scores[rows], ((0, batch_size - len(rows)), (0, 0)))
    return batch


def no_label(dtype: np.dtype) -> float:
    """What stands where there is no label, among labels of a dtype."""
    return np.nan if np.issubdtype(dtype, np.floating) else NO_LABEL


def make_labels(examples: Examples, rows: np.ndarray, length: int, batch_size: int) -> np.ndarray:
    """The rows' labels, (batch_size, ...), or (batch_size, length) where tokens have them; none where there is no row."""
    shape = (length,) if examples.per_token else examples.labels.shape[1:]
    labels = np.full((batch_size, *shape), no_label(examples.labels.dtype), examples.labels.dtype)
    if not examples.per_token:
        labels[: len(rows)] = examples.labels[rows]
        return labels
    for i, row in enumerate(rows):
        start, end = examples.starts[row], examples.starts[row + 1]
        labels[i, : end - start] = examples.labels[start:end]
    return labels


def batches(
    examples: Examples,
    buckets: tuple[int, ...],
    batch_size: int,
    *,
    pad_token_id: int,
    seed: int | None,
    epoch: int = 0,
    start: int = 0,
    labeled_rows: int = 0,
    part: slice | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of an epoch from number `start` on. labeled_rows: of each batch, see `plan_mixed_epoch`; 0: as they come.

    part: which rows of every batch are made, where other processes make the others; None: all.
    """
    if labeled_rows and seed is not None:
        plan = plan_mixed_epoch(examples.lengths, examples.labeled, buckets, batch_size, labeled_rows, seed=seed, epoch=epoch)
    else:
        plan = plan_epoch(examples.lengths, buckets, batch_size, seed=seed, epoch=epoch)
    own = slice(0, batch_size) if part is None else part
    for length, rows in plan[start:]:
        yield make_batch(examples, rows[own], length, own.stop - own.start, pad_token_id)
