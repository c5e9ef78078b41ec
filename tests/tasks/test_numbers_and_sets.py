"""Regression and multi-label classification: losses and scores by hand, and mistakes that name the row."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fail, random_batch, tiny_model
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score

from ftjax.data.files import Rows
from ftjax.data.tokenize import load_tokenizer
from ftjax.objectives.classification import class_logits
from ftjax.objectives.multi_label import MultiLabel
from ftjax.objectives.regression import Regression
from ftjax.tasks import multi_label, regression

logits_of = jax.jit(class_logits, static_argnums=0)


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_squared_error_of_rows_that_have_a_number():
    model, params = tiny_model()
    batch = random_batch()
    batch["labels"] = np.linspace(-200, 200, 8, dtype=np.float32)
    batch["labels"][2] = np.nan
    loss = Regression(model)
    (total, weight), gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, None)[0], has_aux=True))(params)
    logits = np.asarray(logits_of(model, params, batch, None))[:, 0]
    errors = np.delete((logits - batch["labels"]) ** 2, 2)
    assert (float(total), float(weight)) == (pytest.approx(errors.sum(), rel=1e-5), 7)
    assert all(np.isfinite(np.asarray(g)).all() for g in gradient.values())


def test_the_cross_entropy_of_each_class_by_itself():
    model, params = tiny_model()
    batch = random_batch()
    batch["labels"] = np.array([[1, 0], [0, 0], [1, 1], [-100, -100], [0, 1], [1, 0], [0, 0], [1, 1]], np.int32)
    loss = jax.jit(lambda p: MultiLabel(model)(p, batch, None))
    (total, weight), metrics = loss(params)
    p = np.asarray(jax.nn.sigmoid(logits_of(model, params, batch, None)), np.float64)
    y = np.delete(batch["labels"], 3, 0)
    p = np.delete(p, 3, 0)
    expected = -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean(-1).sum()
    assert (float(total), float(weight)) == (pytest.approx(expected, rel=1e-5), 7)
    assert float(metrics["accuracy"][0]) == pytest.approx(((p > 0.5) == (y > 0)).mean(-1).sum())
    huge = loss(params | {"classifier.bias": jnp.asarray([1e4, -1e4])})[0][0]
    assert np.isfinite(float(huge))


def test_scores_of_numbers(minilm):
    task, rng = regression.TASK(("LABEL_0",)), np.random.default_rng(0)
    given = [None if i == 4 else round(float(rng.normal()), 1) for i in range(30)]
    rows = Rows(["a"] * 30, None, given, "rows")
    examples = task.encode(rows, load_tokenizer(minilm), 8)
    outputs = [np.array([np.float32((g or 0.0) + rng.normal())]) for g in given]
    known = [i for i in range(30) if i != 4]
    found, predicted = task.scores(outputs, rows, examples), np.array([float(outputs[i][0]) for i in known])
    y = np.array([given[i] for i in known])
    assert found["mse"] == found["loss"] == pytest.approx(((predicted - y) ** 2).mean())
    assert found["pearson"] == pytest.approx(pearsonr(predicted, y)[0])
    assert found["spearman"] == pytest.approx(spearmanr(predicted, y)[0])
    same = task.scores([np.zeros(1, np.float32)] * 30, rows, examples)
    assert same["pearson"] == same["spearman"] == 0.0
    assert not examples.labeled[4] and examples.labeled.sum() == 29


def test_scores_of_sets(minilm):
    rng = np.random.default_rng(0)
    names = ("a", "b", "c", "d")
    given = [None if i == 4 else tuple(n for n in names[:3] if rng.random() < 0.4) for i in range(30)]
    rows, task = Rows(["x"] * 30, None, given, "rows"), multi_label.TASK(names)
    examples = task.encode(rows, load_tokenizer(minilm), 8)
    outputs = [np.where(rng.random(4) < 0.3, 1.0, -1.0).astype(np.float32) * [1, 1, 1, -1] for _ in range(30)]
    for logits in outputs:
        logits[3] = -2.0  # d neither occurs nor is predicted: no class of the macro average
    found = task.scores(outputs, rows, examples)
    y = np.array([[n in (g or ()) for n in names] for g in given])[examples.labeled]
    p = np.stack(outputs)[examples.labeled] > 0
    assert found["micro_f1"] == pytest.approx(f1_score(y, p, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(y[:, :3], p[:, :3], average="macro"))
    line = task.told(outputs, rows, examples)[0]
    assert line["prediction"] == [n for n in names if line["scores"][n] > 0.5] and line["label"] == given[0]
    assert examples.labeled.sum() == 29
    nothing = Rows(["x"], None, [()], "rows")
    assert (
        task.scores([np.full(4, -1.0, np.float32)], nothing, task.encode(nothing, load_tokenizer(minilm), 8))["micro_f1"] == 0.0
    )


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        (
            "a.jsonl",
            '{"text": "x", "label": ["b", "a", "b"]}\n{"text": "y", "label": []}\n{"text": "z"}\n',
            [("b", "a"), (), None],
        ),
        ("b.csv", "text,label\nx,b | a\ny,a\nz,\n", [("b", "a"), ("a",), None]),
        ("c.jsonl", '{"text": "x", "label": [2, 1]}\n{"text": "y", "label": 3}\n', [("2", "1"), ("3",)]),
    ],
)
def test_sets_of_names(name, content, labels, tmp_path):
    (tmp_path / name).write_text(content)
    settings = type("S", (), dict.fromkeys(("text_column", "text_pair_column", "label_column")))
    assert multi_label.TASK().read_file(tmp_path / name, settings).labels == labels


@pytest.mark.parametrize(
    ("task", "label", "words"),
    [
        ("regression", "high", "the label of row 2 is 'high', not a finite number"),
        ("regression", "nan", "the label of row 2 is 'nan', not a finite number"),
        ("regression", 1e39, "the label of row 2 is 1e+39, not a finite number"),
        ("regression", True, "the label of row 2 is True, not a finite number"),
        ("regression", [1], "the label of row 2 is a list, not a finite number"),
        ("regression", None, "1 of 2 rows have no label, the first is row 2"),
        ("multi-label", ["a", ""], "the label of row 2, ['a', ''], has an empty class name"),
        ("multi-label", "a||b", "the label of row 2, 'a||b', has an empty class name"),
        ("multi-label", [["a"]], "the label of row 2 is a list; labels are names"),
        ("multi-label", {"a": 1}, "the label of row 2 is an object; labels are names"),
    ],
)
def test_labels_that_are_wrong_are_named(task, label, words, tiny_bert, tmp_path, capsys):
    file = put(tmp_path / "train.jsonl", [{"text": "x", "label": "1"}, {"text": "y", "label": label}])
    common = ("--model", tiny_bert, "--train-file", file, "--output", tmp_path / "run", "--max-length", "16")
    said = fail(capsys, "train", "--task", task, *common)
    assert words in said and "train.jsonl" in said
    assert not (tmp_path / "run").exists()


def test_classes_that_training_has_not_seen_or_that_no_row_is_of(tiny_bert, tmp_path, capsys):
    train = ("train", "--task", "multi-label", "--model", tiny_bert, "--output", tmp_path / "run", "--max-length", "16")
    known = put(tmp_path / "train.jsonl", [{"text": "x", "label": ["a"]}])
    other = put(tmp_path / "eval.jsonl", [{"text": "x", "label": []}, {"text": "x", "label": ["b"]}])
    said = fail(capsys, *train, "--train-file", known, "--eval-file", other)
    assert "eval.jsonl: row 2 has the label 'b', which training has not seen; known: a" in said
    none = put(tmp_path / "none.jsonl", [{"text": "x", "label": []}])
    assert "no row is of any class" in fail(capsys, *train, "--train-file", none)
