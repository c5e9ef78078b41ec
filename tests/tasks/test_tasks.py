"""Every task through the commands: train, evaluate, predict and export agree; with each method; what is wrong is one line."""

import json

import numpy as np
import pytest
from conftest import fail
from safetensors.numpy import load_file

from ftjax.cli import main
from ftjax.report import read_run
from ftjax.report.runs import measure
from ftjax.tasks import task_class

TINY = ("--max-length", "32", "--batch-size", "8", "--buckets", "1", "--epochs", "1", "--learning-rate", "1e-3", "--json")
TASKS_OF_ENCODERS = ("multi-label", "regression", "token-classification", "question-answering")
CONTEXT = "The film was shot in Rome by Anna Berg . It is a quiet joy from the first scene to the last one of them ."
WORDS = CONTEXT.replace(" .", "").split()


def texts(number, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(number)]


def rows_of(task, number=24, seed=0):
    """Rows as a JSON Lines file has them; what is to be learnt can be read off the words."""
    found = []
    for row, text in enumerate(texts(number, seed)):
        words = text.split()
        match task:
            case "classification":
                found.append({"text": text, "label": "b" if "Rome" in words else "a"})
            case "multi-label":
                found.append({"text": text, "label": [w for w in ("Rome", "Anna", "joy") if w in words]})
            case "regression":
                found.append({"text": text, "label": len(words) / 4})
            case "token-classification":
                tags = ["B-place" if w == "Rome" else "B-person" if w == "Anna" else "O" for w in words]
                found.append({"tokens": words, "tags": tags})
            case "question-answering":
                text, start = ("Rome", CONTEXT.index("Rome")) if row % 2 else ("Anna Berg", CONTEXT.index("Anna"))
                answers = {"text": [text], "answer_start": [start]} if row % 6 else {"text": [], "answer_start": []}
                question = ("where", "who")[row % 2] + f" was it {row} ?"
                found.append({"question": question, "context": f"{CONTEXT} {' '.join(words)} {CONTEXT}", "answers": answers})
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def unlabeled(task, rows):
    return [{name: value for name, value in row.items() if name != task_class(task).reader.label_column} for row in rows]


def run(capsys, *arguments):
    capsys.readouterr()
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def train(capsys, task, model, directory, *more):
    """The run's directory and its result."""
    files = {name: write(directory / f"{name}.jsonl", rows_of(task, seed=i)) for i, name in enumerate(("train", "eval"))}
    found = ("--train-file", files["train"], "--eval-file", files["eval"], "--test-file", files["eval"])
    out = run(capsys, "train", "--task", task, "--model", model, *found, "--output", directory / "run", *TINY, *more)
    return directory / "run", json.loads(out)


def plain(prediction):
    """A prediction without the digits that rounding may change."""
    match prediction:
        case float():
            return pytest.approx(prediction, rel=1e-4)
        case [{}, *_]:
            return [{name: value for name, value in part.items() if name != "score"} for part in prediction]
    return prediction


@pytest.mark.parametrize("task", TASKS_OF_ENCODERS)
def test_evaluate_and_predict_find_the_task_again_and_agree_with_the_run(task, tiny_bert, tmp_path, capsys):
    output, result = train(capsys, task, tiny_bert, tmp_path)
    kind = task_class(task)
    assert set(result["eval"]) == set(result["test"]) == set(kind.metrics)
    assert all(np.isfinite(list(result["test"].values())))
    same = ("--model", output / "model", "--file", tmp_path / "eval.jsonl", "--max-length", "32")
    scores = json.loads(run(capsys, "evaluate", *same, "--json"))
    assert scores.pop("examples") == 24
    assert scores == pytest.approx(result["test"], rel=1e-4, abs=1e-5)
    lines = [json.loads(line) for line in run(capsys, "predict", *same).splitlines()]
    told = read_run(output).predictions
    assert [line["text"] for line in lines] == [line["text"] for line in told]
    assert [plain(line["prediction"]) for line in lines] == [plain(line["prediction"]) for line in told]
    assert all(line["label"] is not None for line in told)
    assert measure([read_run(output)]) == ("test", next(iter(kind.metrics)))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert kind.metrics[next(iter(kind.metrics))].shown in page
    assert "Worst predictions" in page and "Confusion" not in page


@pytest.mark.parametrize("task", TASKS_OF_ENCODERS)
def test_a_part_of_the_model_trains_beside_a_self_supervised_loss_on_rows_without_a_label(task, tiny_mlm, tmp_path, capsys):
    more = write(tmp_path / "more.jsonl", unlabeled(task, rows_of(task, 12, seed=9)))
    output, _ = train(
        *(capsys, task, tiny_mlm, tmp_path, "--method", "self-supervised", "--unlabeled-file", more),
        *("--train-parameters", "last:1,head", "--metric", "loss"),
    )
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {f"{task.replace('-', '_')}_loss", "masked_lm_loss"} <= {name for line in lines for name in line}
    before, after = (load_file(d / "model.safetensors") for d in (tiny_mlm, output / "model"))
    assert np.array_equal(*(w["bert.encoder.layer.0.output.dense.weight"] for w in (before, after)))
    assert not np.array_equal(*(w["bert.encoder.layer.1.output.dense.weight"] for w in (before, after)))


@pytest.mark.parametrize("task", ["regression", "token-classification", "question-answering"])
def test_a_head_alone_trains_on_what_frozen_layers_have_made_once(task, tiny_bert, tmp_path, capsys):
    """Kept from epoch to epoch or computed in every step: the same bytes."""
    found = []
    for cache in ("memory", "off"):
        directory = tmp_path / cache
        directory.mkdir()
        more = ("--method", "partial", "--train-parameters", "head", "--epochs", "2", "--prefix-cache", cache)
        output, _ = train(capsys, task, tiny_bert, directory, *more)
        found.append((output / "model" / "model.safetensors").read_bytes())
    assert found[0] == found[1]


WRONG = {
    "a loss about classes": (
        ("--task", "regression", "--method", "self-supervised", "--self-supervised-loss", "entropy"),
        "which --task regression does not have",
    ),
    "labels a class": (("--task", "regression", "--labels-per-class", "2"), "has no classes to draw rows of"),
    "another task's metric": (("--task", "regression", "--metric", "accuracy", "--eval-file", "x"), "mse, pearson, spearman"),
    "a metric misspelt": (("--metric", "acuracy", "--eval-file", "x"), "Did you mean 'accuracy'?"),
    "another task's windows": (("--task", "regression", "--window-overlap", "4"), "--task question-answering"),
    "a head of its own": (("--task", "token-classification", "--classifier", "mean"), "has a head of its own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_flags_that_are_not_the_tasks(name, tiny_bert, tmp_path, capsys):
    flags, words = WRONG[name]
    task = flags[1] if flags[0] == "--task" else "classification"
    file = write(tmp_path / "train.jsonl", rows_of(task))
    common = ("--model", tiny_bert, "--train-file", file, "--output", tmp_path / "run", *TINY)
    assert words in fail(capsys, "train", *common, *flags)
    assert not (tmp_path / "run").exists()
