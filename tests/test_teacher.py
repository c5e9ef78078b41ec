"""Distillation: what another model says of rows without a label, from its file to the loss, and mistakes in the file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, run_command
from test_objectives import assert_close, by_hand, logits_of, measured, seeds_of, small_model, with_gradient
from test_self_supervised import TINY, refused

from ftjax.data.batches import make_batch
from ftjax.data.files import Rows
from ftjax.data.teacher import read_teacher
from ftjax.data.tokenize import Examples
from ftjax.errors import InputError
from ftjax.objectives.augment import Identity
from ftjax.objectives.classification import class_logits
from ftjax.objectives.consistency import Consistency
from ftjax.objectives.pseudo_label import PseudoLabel


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_loss_by_hand_and_its_gradient():
    """Cross-entropy with the teacher's probabilities, but for what no parameter changes."""
    model, params = small_model(dropout=False)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=8, unlabeled=6))
    told = jax.nn.softmax(3 * jax.random.normal(jax.random.key(1), (8, 3)), axis=-1)
    told = told[:, : logits_of(model, params, batch, None).shape[1]]
    told = told / told.sum(-1, keepdims=True)
    taught = batch | {"teacher_scores": told}
    logits = logits_of(model, params, batch, None)
    divergence, labelled, sure = by_hand(batch, jnp.log(told), logits)
    (total, weight), metrics = measured(Consistency(model, Identity(), 0.5, 0.6), params, taught, seeds_of(batch))
    np.testing.assert_allclose([float(total), float(weight)], [divergence, 6], rtol=1e-4)
    assert float(metrics["consistency_confident"][0]) == sure > 0
    (total, _), _ = measured(PseudoLabel(model, Identity(), threshold=0.6), params, taught, seeds_of(batch))
    np.testing.assert_allclose(float(total), labelled, rtol=1e-4)
    unlabelled = (batch["labels"] < 0).astype(jnp.float32)

    @jax.jit
    @jax.grad
    def cross_entropy(params):
        return -(unlabelled * (told * jax.nn.log_softmax(class_logits(model, params, batch, None))).sum(-1)).sum()

    _, gradient = with_gradient(Consistency(model, Identity(), 1.0), params, taught, None)
    assert_close(gradient, cross_entropy(params))


def test_a_certain_teacher_makes_no_infinite_loss():
    model, params = small_model(dropout=False)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=4, unlabeled=4))
    classes = logits_of(model, params, batch, None).shape[1]
    certain = jax.nn.one_hot(jnp.zeros(4, jnp.int32), classes)
    (total, _), gradient = with_gradient(Consistency(model, Identity()), params, batch | {"teacher_scores": certain}, None)
    assert np.isfinite(float(total)) and all(np.isfinite(value).all() for value in gradient.values())


def test_scores_go_to_the_rows_whose_text_they_are_of(tmp_path):
    path = write(
        tmp_path / "told.jsonl",
        {"text": "b", "prediction": "no", "scores": {"no": 0.75, "yes": 0.25}},
        {"text": "a", "prediction": "yes", "scores": {"yes": 1, "no": 0}},
    )
    rows = [Rows(["a", "never seen"], None, [None, "yes"], "few.csv"), Rows(["b", "a"], None, None, "texts.csv")]
    found = read_teacher(path).of(rows, ("yes", "no"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1, 0], [0, 0], [0.25, 0.75], [1, 0]])
    tokens = np.arange(8, dtype=np.int32)
    labels = np.array([-100, 0, -100, -100], np.int32)
    examples = dataclasses.replace(Examples(tokens, 0 * tokens, np.arange(0, 9, 2), labels, 0, 0), teacher_scores=found)
    batch = make_batch(examples, np.array([2, 0]), 4, 3, 0)
    np.testing.assert_array_equal(batch["teacher_scores"], [[0.25, 0.75], [1, 0], [0, 0]])


GOOD = {"text": "x", "scores": {"rotten": 0.5, "fresh": 0.5}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "x", "label": "rotten"}], "no column 'scores'; its columns are"),
        ([{"sentence": "x", "scores": {}}], "no column 'text'"),
        ([GOOD, {"text": "y", "scores": 0.5}], "the scores of row 2 are a number, not a number for each class"),
        ([GOOD, {"text": "y", "scores": {}}], "the scores of row 2 are"),
        ([GOOD, {"text": "y", "scores": {"rotten": 1.0}}], "row 2 scores rotten, the first row rotten, fresh"),
        ([GOOD, {"text": "y", "scores": {"rotten": 0.2, "fresh": 0.2}}], "row 2 are no probabilities: 0.2, 0.2"),
        ([GOOD, {"text": "y", "scores": {"rotten": -1.0, "fresh": 2.0}}], "row 2 are no probabilities"),
        ([GOOD, {"text": "y", "scores": {"rotten": float("nan"), "fresh": 1.0}}], "row 2 are no probabilities"),
        ([GOOD, {"text": "y", "scores": {"rotten": "0.5", "fresh": 0.5}}], "row 2 are no probabilities"),
    ],
)
def test_files_that_are_no_teachers_are_refused_in_one_line(rows, said, tmp_path):
    with pytest.raises(InputError) as error:
        read_teacher(write(tmp_path / "told.jsonl", *rows))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rows_with_two_texts_are_refused(tmp_path):
    teacher = read_teacher(write(tmp_path / "told.jsonl", GOOD))
    with pytest.raises(InputError, match="goes by the text of a row"):
        teacher.of([Rows(["x"], ["y"], None, "pairs.csv")], ("rotten", "fresh"))


FLAGS = ("--self-supervised-loss", "consistency", "--augmentation", "dropout", "--sharpening", "1", "--teacher-scores")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"rotten": 0.5, "fresh": 0.5}, "has no scores for row 25 of"),
        ({"bad": 0.5, "good": 0.5}, "scores the classes bad, good, the rows have fresh, rotten"),
    ],
)
def test_scores_of_other_rows_or_classes(scores, said, tiny_bert, few, tmp_path):
    refused(tiny_bert, few, tmp_path, *FLAGS, write(tmp_path / "told.jsonl", {"text": "x", "scores": scores}), said=said)


def test_scores_without_a_loss_that_takes_them(tiny_bert, few, tmp_path):
    told = write(tmp_path / "told.jsonl", GOOD)
    refused(tiny_bert, few, tmp_path, "--teacher-scores", told, said="--teacher-scores needs consistency or pseudo-label")
    refused(tiny_bert, few, tmp_path, *FLAGS, told, "--teacher-decay", "0.9", said="are two teachers; take one")
    refused(tiny_bert, few, tmp_path, *FLAGS, tmp_path / "none.jsonl", said="none.jsonl: no such file")


def test_a_student_learns_what_its_teacher_says_without_a_label(tiny_bert, few_reviews, tmp_path):
    """Through the real command: a (made-up) teacher that has one opinion of all texts, and no label; the classes are its."""
    texts = few_reviews["unlabeled"].read_text(encoding="utf-8").splitlines()
    told = write(tmp_path / "told.jsonl", *({"text": text, "scores": {"fresh": 0.9, "rotten": 0.1}} for text in texts))
    done = run_command(
        *("train", "--model", tiny_bert, "--method", "self-supervised", *FLAGS, told, *TINY, "--epochs", "20"),
        *("--unlabeled-file", few_reviews["unlabeled"], "--test-file", few_reviews["eval"], "--output", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["test"]["accuracy"] <= 1  # the labels of the test rows are the teacher's classes
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("classification_loss" in line for line in lines)
    losses = [line["consistency_loss"] for line in lines if "consistency_loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    said = [json.loads(line)["scores"]["fresh"] for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(said, 0.9, atol=0.15)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert {*config["id2label"].values()} == {"fresh", "rotten"}
