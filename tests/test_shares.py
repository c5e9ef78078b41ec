"""Rows that several processes tokenise in shares make the very batches of rows that one tokenises."""

import dataclasses

import numpy as np
import pytest

from ftjax.data.files import Rows
from ftjax.data.tokenize import Pieces, join, load_tokenizer
from ftjax.objectives import NO_LABEL
from ftjax.shares import between, encoded, read, stacked, together, write
from ftjax.tasks import task_class

TEXTS = [f"a film of {'very ' * (number % 7)}many words, {number}" for number in range(23)]
ROWS = {
    "classification": Rows(TEXTS, TEXTS[::-1], ["good", "bad", None] * 7 + ["bad", "good"], "made up"),
    "multi-label": Rows(TEXTS, None, [("good",), ("good", "bad"), ()] * 7 + [None, ("bad",)], "made up"),
    "regression": Rows(TEXTS, None, [0.5 * number for number in range(23)], "made up"),
    "token-classification": Rows(TEXTS, None, [("O", "B-x") + ("O",) * (len(t.split()) - 2) for t in TEXTS[:-1]] + [None], "m"),
    "causal-lm": Rows([text * 3 for text in TEXTS], None, None, "made up"),
    "masked-lm": Rows(TEXTS, None, TEXTS, "made up"),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def in_shares(rows, encode, number, directory):
    """As so many processes would have it, seen from the last."""
    bounds = [len(rows.texts) * i // number for i in range(number + 1)]
    for i in range(number):
        own = encode(between(rows, bounds[i], bounds[i + 1]))
        write(own, directory / str(i))
    return together(own, [read(directory / str(i)) for i in range(number)], bounds)


@pytest.mark.parametrize("name", ROWS)
def test_batches_of_shares_are_those_of_one_process(name, tokenizer, tmp_path):
    rows, task = ROWS[name], task_class(name)()
    task = task.fitted([rows], ())

    def encode(part):
        return task.encode(part, tokenizer, 12)

    whole, shared = encode(rows), in_shares(rows, encode, 3, tmp_path)
    assert type(shared) is type(whole)
    for field in ("starts", "lengths", "labeled", "truncated", "empty", "rows"):
        np.testing.assert_array_equal(getattr(shared, field), getattr(whole, field), err_msg=field)
    where = {"pad_token_id": 0, "seed": 3, "part": slice(2, 6)}  # the rows that a process feeds
    pairs = list(zip(task.batches(shared, (8, 16), 8, **where), task.batches(whole, (8, 16), 8, **where), strict=True))
    assert len(pairs) > 1
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for field, value in expected.items():
            np.testing.assert_array_equal(found[field], value, err_msg=field)
            assert found[field].dtype == value.dtype
    assert isinstance(shared.tokens, Pieces) and all(isinstance(array, np.memmap) for array in shared.tokens.arrays)


def test_shares_of_two_files_are_joined_and_written_again(tokenizer, tmp_path):
    rows, task = ROWS["token-classification"], task_class("token-classification")()
    task = task.fitted([rows], ())

    def encode(part):
        return task.encode(part, tokenizer, 12)

    unlabeled = dataclasses.replace(rows, labels=None)
    whole = join(encode(rows), encode(unlabeled))
    for _ in range(2):  # the second time into the same directories, of which files are mapped
        shared = join(in_shares(rows, encode, 2, tmp_path / "0"), in_shares(unlabeled, encode, 2, tmp_path / "1"))
    np.testing.assert_array_equal(shared.labeled, whole.labeled)
    for row in range(len(whole)):
        np.testing.assert_array_equal(shared.tokens[shared.at(row)], whole.tokens[whole.at(row)])
        np.testing.assert_array_equal(shared.labels[shared.at(row)], whole.labels[whole.at(row)])


def test_targets_of_shares_are_as_wide_as_the_longest():
    found = stacked([np.array([[1, 2]]), np.array([[3, 4, 5], [6, NO_LABEL, NO_LABEL]])])
    np.testing.assert_array_equal(found, [[1, 2, NO_LABEL], [3, 4, 5], [6, NO_LABEL, NO_LABEL]])


def test_one_process_writes_nothing(tokenizer, tmp_path):
    rows = ROWS["masked-lm"]
    found = encoded(rows, lambda part: task_class("masked-lm")().encode(part, tokenizer, 12), None)
    assert isinstance(found.tokens, np.ndarray) and not list(tmp_path.iterdir())
