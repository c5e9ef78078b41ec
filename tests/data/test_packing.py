"""Documents in packed rows: nothing lost, nothing twice, hardly any padding, an order that (seed, epoch) fix."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.data.batches import batches
from ftjax.data.packing import cut, documents, pack, packed_batches
from ftjax.data.pairs import pair_batches


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(8, 24), st.integers(0, 3))
def test_every_token_but_a_documents_first_is_learnt_exactly_once(lengths, most, epoch):
    texts = [np.arange(n) + 1000 * number for number, n in enumerate(lengths)]
    examples = documents(texts, None, most, truncated=0, empty=0)
    found, rows = [], 0
    for batch in packed_batches(examples, 4, pad_token_id=7, seed=1, epoch=epoch):
        real = batch["example_ids"] >= 0
        rows += int(real.sum())
        assert not batch["attention_mask"][~real].any()
        assert np.array_equal(batch["attention_mask"] > 0, batch["segment_ids"] > 0)
        learnt = batch["labels"] >= 0
        assert np.array_equal(batch["labels"][learnt], batch["input_ids"][learnt])
        i, j = np.nonzero(learnt)  # what stands before a learnt token, in its own segment, is the token before it in the text
        assert np.array_equal(batch["segment_ids"][i, j - 1], batch["segment_ids"][i, j])
        assert np.array_equal(batch["input_ids"][i, j - 1] + 1, batch["input_ids"][i, j])
        found += batch["labels"][learnt].tolist()
    assert sorted(found) == sorted(int(token) for text in texts for token in text[1:])
    assert rows == len(pack(examples.lengths, most, seed=None))  # in every epoch
    fewest = -(-int(examples.lengths.sum()) // most)
    assert rows <= 11 / 9 * max(fewest, (examples.lengths > most / 2).sum()) + 1


def test_pieces_follow_each_other_and_share_a_token():
    assert cut(1, 8) == [(0, 1)]
    assert cut(8, 8) == [(0, 8)]
    assert cut(9, 8) == [(0, 8), (7, 9)]
    assert cut(22, 8) == [(0, 8), (7, 15), (14, 22)]


def test_the_order_is_fixed_by_seed_and_epoch_and_a_resumed_epoch_goes_on_where_it_was():
    examples = documents([np.arange(n) for n in (5, 5, 5, 3, 3, 8, 20, 2)], None, 8, truncated=0, empty=0)

    def epoch(number, start=0, seed=3):
        return [b["input_ids"] for b in packed_batches(examples, 2, pad_token_id=0, seed=seed, epoch=number, start=start)]

    first = epoch(0)
    assert all(map(np.array_equal, first, epoch(0)))
    assert not all(map(np.array_equal, first, epoch(1)))
    assert not all(map(np.array_equal, first, epoch(0, seed=4)))
    assert all(map(np.array_equal, first[2:], epoch(0, start=2)))


@pytest.mark.parametrize("most", [8, 64])
def test_only_chosen_tokens_are_learnt(most):
    examples = documents([[5, 6, 7, 8], [9, 9]], [[0, 1, 0, 1], [1, 0]], most, truncated=0, empty=0)
    assert examples.labels.tolist() == [-100, 6, -100, 8, -100, -100]


@pytest.mark.parametrize("make", [batches, packed_batches, pair_batches])
def test_the_parts_that_processes_make_are_the_rows_of_one_batch(make):
    examples = documents([np.arange(n) for n in (5, 3, 8, 2, 7, 7, 1, 4, 6)], None, 8, truncated=0, empty=0)
    if make is pair_batches:
        examples = dataclasses.replace(examples, labels=np.tile(np.arange(6, dtype=np.int32), (9, 1)), per_token=False)
    where = () if make is packed_batches else ((8,),)
    ways = [make(examples, *where, 4, pad_token_id=0, seed=3, part=part) for part in (None, slice(0, 2), slice(2, 4))]
    for whole, first, second in zip(*ways, strict=True):
        assert all(np.array_equal(whole[name], np.concatenate([first[name], second[name]])) for name in whole)
