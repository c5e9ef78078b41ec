import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax.data.batches import batches, choose_buckets, plan_epoch
from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples, encode, join, label_names, load_tokenizer
from ftjax.demo import reviews
from ftjax.errors import InputError

lengths_of_rows = st.lists(st.integers(1, 90), min_size=1, max_size=120).map(np.array)


def examples_of(lengths):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(starts[-1], dtype=np.int32) + 1
    return Examples(tokens, np.zeros_like(tokens), starts, np.arange(len(lengths), dtype=np.int32), 0, 0)


@given(lengths_of_rows, st.integers(1, 6), st.sampled_from([0.0, 20.0, 300.0]))
def test_buckets_hold_every_row_with_the_least_padding_and_compiling(lengths, most, bucket_cost):
    uses = 1 + np.arange(len(lengths)) % 3

    def cost(choice):
        return (uses * np.array(choice)[np.searchsorted(choice, lengths)]).sum() + bucket_cost * len(choice)

    buckets = choose_buckets(lengths, most=most, bucket_cost=bucket_cost, uses=uses)
    assert list(buckets) == sorted(set(buckets))
    assert len(buckets) <= most
    assert buckets[-1] >= lengths.max()
    candidates = np.unique(-(-lengths // 8) * 8)
    if len(candidates) <= 7:  # few enough to try every choice
        import itertools

        best = min(
            cost(choice)
            for size in range(1, most + 1)
            for choice in itertools.combinations(candidates, min(size, len(candidates)))
            if choice[-1] == candidates[-1]
        )
        assert cost(buckets) == best


@given(lengths_of_rows, st.integers(1, 9), st.integers(0, 3), st.integers(0, 2))
def test_every_row_is_in_exactly_one_batch_and_at_most_one_batch_is_ragged(lengths, batch_size, seed, epoch):
    buckets = choose_buckets(lengths)
    plan = plan_epoch(lengths, buckets, batch_size, seed=seed, epoch=epoch)
    rows = np.concatenate([r for _, r in plan])
    assert sorted(rows) == list(range(len(lengths)))
    assert sum(len(r) < batch_size for _, r in plan) <= 1
    assert len(plan) == -(-len(lengths) // batch_size)
    assert all(lengths[r].max() <= bucket for bucket, r in plan)
    again = plan_epoch(lengths, buckets, batch_size, seed=seed, epoch=epoch)
    assert all(a == b and np.array_equal(r, s) for (a, r), (b, s) in zip(plan, again, strict=True))


def test_order_differs_between_seeds_and_epochs():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    first = [
        np.concatenate([r for _, r in plan_epoch(lengths, (64,), 8, seed=s, epoch=e)]) for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


@given(lengths_of_rows, st.integers(1, 9))
def test_batches_carry_every_token_once_and_the_last_is_filled_up(lengths, batch_size):
    examples = examples_of(lengths)
    buckets = choose_buckets(lengths)
    seen = []
    for batch in batches(examples, buckets, batch_size, pad_token_id=0, seed=None):
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].shape[0] == batch_size
        assert batch["input_ids"].shape[1] in buckets
        assert np.array_equal(batch["input_ids"] > 0, batch["attention_mask"] > 0)
        real = batch["example_ids"] >= 0
        assert np.array_equal(batch["labels"] >= 0, real)
        assert np.array_equal(batch["labels"][real], batch["example_ids"][real])
        seen.append(batch["input_ids"][batch["attention_mask"] > 0])
    assert np.array_equal(np.sort(np.concatenate(seen)), examples.tokens)


def test_starting_late_gives_the_rest_of_the_epoch():
    examples = examples_of(np.random.default_rng(1).integers(1, 60, 100))
    options = {"pad_token_id": 0, "seed": 3, "epoch": 2}
    everything = list(batches(examples, (64,), 8, **options))
    rest = list(batches(examples, (64,), 8, **options, start=9))
    assert len(rest) == len(everything) - 9
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(everything[9:], rest, strict=True))


def test_the_real_reviews_have_the_rows_that_the_split_promises(review_files):
    for split, path in review_files.items():
        with path.open(encoding="utf-8", newline="") as file:
            assert sum(1 for _ in csv.DictReader(file)) == reviews.SPLITS[split]


def test_real_text_is_tokenised_cut_and_counted(minilm):
    tokenizer = load_tokenizer(minilm)
    rows = Rows(["I love this movie", "", "very " * 50], None, ["1", None, "0"], "test")
    found = encode(rows, tokenizer, ("0", "1"), max_length=16)
    assert list(found.tokens[:6]) == [101, 1045, 2293, 2023, 3185, 102]
    assert list(found.labels) == [1, -100, 0]
    assert list(found.lengths) == [6, 2, 16]
    assert (found.truncated, found.empty) == (1, 1)
    pair = encode(Rows(["a"], ["b c"], None, "test"), tokenizer, (), max_length=16)
    assert list(pair.token_types) == [0, 0, 0, 1, 1, 1]
    both = join(found, pair)
    assert list(both.lengths) == [6, 2, 16, 6]
    assert np.array_equal(both.tokens[both.starts[3] :], pair.tokens)


def test_labels_are_ordered_by_value_or_alphabet_and_unseen_ones_are_refused(minilm):
    assert label_names([Rows([""], None, ["10", "9", None], "a")]) == ("9", "10")
    assert label_names([Rows([""], None, ["b", "a"], "a")]) == ("a", "b")
    assert label_names([Rows([""], None, ["0", "1"], "a", label_names=("no", "yes"))]) == ("no", "yes")
    with pytest.raises(InputError, match=r"a\.csv: row 2 has the label 'c', which training has not seen; known: a, b"):
        encode(Rows(["x", "y"], None, ["a", "c"], "a.csv"), load_tokenizer(minilm), ("a", "b"), 8)
