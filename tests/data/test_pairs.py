"""Batches of sources and targets: padded on both sides to few lengths, each row once."""

import numpy as np
import pytest

from ftjax.data.pairs import pair_batches, plan_pairs
from ftjax.data.tokenize import Examples


@pytest.mark.parametrize("rows", [1, 7, 64, 301])
def test_each_row_is_in_one_batch_that_holds_it(rows):
    rng = np.random.default_rng(rows)
    lengths = np.stack([rng.integers(1, 65, rows), rng.integers(1, 33, rows)], axis=1)
    buckets = ((16, 32, 64), (8, 32))
    plan = plan_pairs(lengths, buckets, 8, seed=1, epoch=2)
    assert sorted(np.concatenate([part for _, part in plan]).tolist()) == list(range(rows))
    assert sum(len(part) < 8 for _, part in plan) <= 1
    for (source, target), part in plan:
        assert source in buckets[0] and target in buckets[1]
        assert (lengths[part] <= (source, target)).all()
    again = plan_pairs(lengths, buckets, 8, seed=1, epoch=2)
    assert all(a == b and np.array_equal(c, d) for (a, c), (b, d) in zip(plan, again, strict=True))
    if rows > 8:  # most batches have no longer bucket than they need on either side
        tight = [lengths[part].max(0) > (np.array([0, *buckets[0]])[buckets[0].index(s)], 0) for (s, _), part in plan]
        assert all(tight_source for tight_source, _ in tight)


def test_a_batch_has_its_targets_and_nothing_else():
    starts = np.array([0, 2, 5, 6])
    labels = np.array([[5, 1, -100], [-100, -100, -100], [6, 7, 1]], np.int32)
    tokens = np.arange(10, 16, dtype=np.int32)
    examples = Examples(tokens, np.zeros(6, np.int32), starts, labels, truncated=0, empty=0)
    (batch,) = pair_batches(examples, (8,), 4, pad_token_id=0, seed=None)
    assert batch["input_ids"].shape == (4, 8) and batch["labels"].shape == (4, 8)
    assert batch["labels"][:3, :3].tolist() == labels.tolist()
    assert (batch["labels"][:, 3:] == -100).all() and (batch["labels"][3] == -100).all()
    assert batch["example_ids"].tolist() == [0, 1, 2, -1]
