"""The commands as a person runs them: what they print and write, and one clear line for every mistake."""

import csv
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import fail, run_command
from safetensors.numpy import load_file, save_file

from ftjax.cli import main

TINY = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--epochs", "1")


@pytest.fixture
def train(tiny_bert, few_reviews, tmp_path, capsys):
    """A failing `ftjax train`, its flags overridden by keyword; checks that no run was begun, returns the line."""

    def run(*more, **flags):
        values = {"model": tiny_bert, "train_file": few_reviews["train"], "output": tmp_path / "run", **flags}
        given = [str(p) for name, v in values.items() if v is not None for p in ("--" + name.replace("_", "-"), v)]
        line = fail(capsys, "train", *TINY, *given, *more)
        assert not (tmp_path / "run" / "config.json").exists() or flags.get("output")
        return line

    return run


@pytest.fixture(scope="module")
def trained(tiny_bert, few_reviews, tmp_path_factory):
    """A finished run: its directory and what --json printed."""
    output = tmp_path_factory.mktemp("trained") / "run"
    done = run_command(
        *("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"]),
        *("--test-file", few_reviews["eval"], "--output", output, "--json", *TINY, "--method", "partial"),
    )
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout), done.stderr


def test_train_prints_one_object_and_says_what_trains(trained):
    output, result, log = trained
    needed = {"method", "trained_parameters", "frozen_parameters", "train_seconds", "examples_per_second", "peak_memory_bytes"}
    assert needed <= set(result)
    assert {"loss", "accuracy", "macro_f1", "matthews"} == set(result["eval"]) == set(result["test"])
    tensors = load_file(output / "model" / "model.safetensors")
    assert result["trained_parameters"] + result["frozen_parameters"] == sum(t.size for t in tensors.values())
    assert f"Training {result['trained_parameters']:,} parameters, {result['frozen_parameters']:,} frozen" in log
    assert "Not in the checkpoint, initialised and trained: classifier.bias, classifier.kernel" in log
    assert set(result["seconds"]) == {"load", "compile", "prefix", "data_wait", "step", "eval", "save"}


def test_evaluate_predict_and_export_agree_with_the_run(trained, few_reviews, tmp_path, capsys):
    output, result, _ = trained
    main(["evaluate", "--model", str(output / "model"), "--file", str(few_reviews["eval"]), "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores.pop("examples") == 30
    assert scores == pytest.approx(result["eval"], rel=1e-5)

    with few_reviews["eval"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    predictions = tmp_path / "predictions.jsonl"
    main(["predict", "--model", str(output / "model"), "--file", str(few_reviews["eval"]), "--output", str(predictions)])
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in rows]
    assert [line["row"] for line in lines] == [*range(1, len(rows) + 1)]
    assert np.mean([line["prediction"] == row["label"] for line, row in zip(lines, rows, strict=True)]) == pytest.approx(
        result["eval"]["accuracy"]
    )
    assert all(sum(line["scores"].values()) == pytest.approx(1) for line in lines)
    main(["predict", "--model", str(output / "model"), rows[0]["text"]])
    assert json.loads(capsys.readouterr().out)["prediction"] == lines[0]["prediction"]

    main(["export", "--checkpoint", str(output), "--output", str(tmp_path / "again")])
    whole, again = (load_file(d / "model.safetensors") for d in (output / "model", tmp_path / "again"))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    step = result["best_step"]
    main(["export", "--checkpoint", str(output / "checkpoints" / str(step)), "--output", str(tmp_path / "third")])
    capsys.readouterr()
    assert "7" in fail(capsys, "export", "--checkpoint", output / "checkpoints" / "7", "--output", tmp_path / "x")
    assert "not empty" in fail(capsys, "export", "--checkpoint", output, "--output", tmp_path / "again")
    assert "no config.json" in fail(capsys, "export", "--checkpoint", tmp_path, "--output", tmp_path / "y")
    assert "Give either" in fail(capsys, "predict", "--model", output / "model")
    assert "exists" in fail(capsys, "predict", "--model", output / "model", "--file", predictions, "--output", predictions)


def test_compare_runs_all_methods_prints_a_table_and_is_safe_to_run_again(tiny_bert, few_reviews, tmp_path):
    arguments = [
        *("compare", "--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], *TINY),
        *("--unlabeled-file", few_reviews["unlabeled"], "--output", tmp_path / "c", "--resume", "--json"),
    ]
    first = run_command(*arguments)
    assert first.returncode == 0, first.stderr
    results = json.loads(first.stdout)
    assert [r["method"] for r in results] == ["full", "partial", "self-supervised"]
    assert results[0]["trained_parameters"] > results[1]["trained_parameters"]
    for word in ("method", "accuracy", "trained", "step", "peak", "report.html"):
        assert word in first.stderr
    assert "<svg" in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    second = run_command(*arguments)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == results

    page = tmp_path / "page.html"
    shown = run_command("report", tmp_path / "c" / "full", tmp_path / "c" / "partial", "--output", page)
    assert shown.returncode == 0, shown.stderr
    assert "accuracy" in shown.stderr and "What it cost" in page.read_text(encoding="utf-8")
    for wrong, words in (
        ((tmp_path, "--output", page), "not a run of ftjax"),
        ((tmp_path / "c" / "full", "--output", few_reviews["train"]), "is not a report"),
        ((tmp_path / "c" / "full", "--output", tmp_path / "no" / "page.html"), "does not exist"),
    ):
        failed = run_command("report", *wrong)
        assert failed.returncode == 2 and words in failed.stderr and "Traceback" not in failed.stderr


def test_self_supervised_learns_without_any_label(tiny_bert, few_reviews, tmp_path):
    done = run_command(
        *("train", "--model", tiny_bert, "--unlabeled-file", few_reviews["unlabeled"], "--eval-file", few_reviews["eval"]),
        *("--method", "self-supervised", "--output", tmp_path / "run", *TINY, "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["eval"]) == {"loss", "masked_lm_loss", "masked_lm_accuracy"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("classification_loss" in line for line in lines)


def test_parameters_shows_what_would_happen_to_each_and_what_choices_cost(tiny_bert, trained, tmp_path, capsys):
    arguments = ["parameters", "--model", str(tiny_bert), "--train-parameters", "last:1,lora:2", "--layer-decay", "0.5"]
    main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["parameters"]}
    assert rows["encoder.layers.1.mlp.up.kernel"] == {
        **{"name": "encoder.layers.1.mlp.up.kernel", "shape": [16, 32], "count": 512, "trained": True, "new": False},
        **{"learning_rate": 2.5e-5, "weight_decay": 0.01},
    }
    assert rows["encoder.layers.0.attention.query.lora_a"]["learning_rate"] == 1.25e-5
    assert rows["classifier.bias"]["new"] and rows["classifier.bias"]["weight_decay"] == 0
    assert rows["encoder.embeddings.word.embedding"]["learning_rate"] is None
    memory = {row["train_parameters"]: row for row in found["memory"]}
    asked, everything = memory["last:1,lora:2"], memory["all"]
    assert asked["trained_parameters"] == sum(row["count"] for row in rows.values() if row["trained"])
    assert everything["bytes"] == 4 * 4 * everything["trained_parameters"]
    assert asked["moments_bytes"] == 8 * asked["trained_parameters"]

    main(arguments)
    shown = capsys.readouterr().out
    assert "encoder.layers.0.attention.query.lora_a (new)" in shown and "16 x 2" in shown
    assert "Did you mean 'head'?" in fail(capsys, "parameters", "--model", tiny_bert, "--train-parameters", "haed")
    main(["parameters", "--model", str(trained[0] / "model"), "--json"])
    assert not any(row["new"] for row in json.loads(capsys.readouterr().out)["parameters"])


def test_rules_and_low_rank_matrices_in_a_run(tiny_bert, few_reviews, tmp_path):
    rules = tmp_path / "rules.txt"
    rules.write_text("lora:2 trained learning-rate=3\nlast:1 trained weight-decay=0\nhead trained\n.* frozen\n")
    done = run_command(
        *("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--json"),
        *("--output", tmp_path / "run", *TINY, "--method", "partial", "--train-parameters", f"rules:{rules}"),
    )
    assert done.returncode == 0, done.stderr
    assert "LoRA of rank 2, scale 8, beside 2 kernels" in done.stderr
    before, after = (load_file(d / "model.safetensors") for d in (tiny_bert, tmp_path / "run" / "model"))
    same = {name for name, value in before.items() if np.array_equal(value, after[name])}
    layer = "bert.encoder.layer.0.attention.self"
    assert {f"{layer}.key.weight", f"{layer}.query.bias", "bert.embeddings.word_embeddings.weight"} <= same
    assert not {f"{layer}.query.weight", f"{layer}.value.weight", "bert.encoder.layer.1.output.dense.weight"} & same


def test_doctor_and_help():
    doctor = run_command("doctor", "--json")
    assert doctor.returncode == 0
    assert json.loads(doctor.stdout)["ok"] is True
    assert "Ready." in run_command("doctor").stdout
    shown = run_command("train", "--help").stdout
    for flag in ("--train-file", "--method", "--train-parameters", "--learning-rate", "--resume"):
        assert flag in shown
    wrong = run_command("train", "--modle", "x")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


FLAGS = {
    "no data": ({"train_file": None}, (), "--train-file or --dataset"),
    "full with parts": ({"train_parameters": "head"}, (), "--method partial"),
    "partial with all": ({"method": "partial", "train_parameters": "all"}, (), "--method full"),
    "unknown part": ({"method": "partial", "train_parameters": "heda"}, (), "Did you mean 'head'?"),
    "part of no layer": ({"method": "partial", "train_parameters": "last:9"}, (), "from 1 to 2"),
    "part of all layers": ({"method": "partial", "train_parameters": "top:1.5"}, (), "at most 1"),
    "lora without a rank": ({"method": "partial", "train_parameters": "lora:"}, (), "lora:R"),
    "lora on nothing": (
        {"method": "partial", "train_parameters": "lora:2", "lora_targets": "querry"},
        (),
        "match no dense layer",
    ),
    "lora on what trains": ({"method": "partial", "train_parameters": "lora:2,attention"}, (), "train themselves"),
    "no rules": ({"method": "partial", "train_parameters": "rules:none.txt"}, (), "No such file"),
    "unfreezing all": ({"unfreeze": "1=head", "epochs": "2"}, (), "--method partial"),
    "unfreezing unspelled": ({"method": "partial", "unfreeze": "head"}, (), "EPOCH=SPEC"),
    "unfreezing too late": ({"method": "partial", "unfreeze": "1=all"}, (), "--epochs 1"),
    "unfreezing nothing": (
        {"method": "partial", "train_parameters": "last:1,head", "unfreeze": "1=last:1,head", "epochs": "2"},
        (),
        "trains nothing that did not train before",
    ),
    "freezing again": (
        {"method": "partial", "train_parameters": "last:1,head", "unfreeze": "1=head", "epochs": "2"},
        (),
        "stages may only add",
    ),
    "layer decay": ({"layer_decay": "0"}, (), "--layer-decay 0"),
    "cache of a negative size": ({"prefix_cache_disk_gb": "-1"}, (), "--prefix-cache-disk-gb"),
    "lambda elsewhere": ({"self_supervised_weight": "0.1"}, (), "needs --method self-supervised"),
    "negative lambda": ({"method": "self-supervised", "self_supervised_weight": "-1"}, (), "--self-supervised-weight '-1'"),
    "infinite lambda": ({"method": "self-supervised", "self_supervised_weight": "inf"}, (), "--self-supervised-weight 'inf'"),
    "not a number": ({"learning_rate": "nan"}, (), "--learning-rate nan"),
    "zero learning rate": ({"learning_rate": "0"}, (), "--learning-rate"),
    "no epochs": ({"epochs": "0"}, (), "--epochs 0"),
    "accumulation": ({"gradient_accumulation": "3"}, (), "--gradient-accumulation 3"),
    "early stopping": ({"early_stopping": "2"}, (), "--eval-file"),
    "a metric without evaluation": ({"metric": "matthews"}, (), "--eval-file"),
    "dropout of one": ({"dropout": "1"}, (), "--dropout 1"),
    "longer than the model": ({"max_length": "65"}, (), "64 positions"),
    "split without data set": ({"eval_split": "test"}, (), "--dataset"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_make_no_sense(train, name):
    flags, more, words = FLAGS[name]
    assert words in train(*more, **flags)


def write(path, header, *rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_data_that_is_wrong(train, few_reviews, tmp_path):
    columns = ("text", "label")
    good = [("fine", "a"), ("bad", "b")]
    assert "no such file" in train(train_file=tmp_path / "none.csv")
    assert "Did you mean 'train.csv'?" in train(train_file=few_reviews["train"].with_name("trian.csv"))
    line = train(text_column="txet")
    assert "txet" in line and "text, label" in line and "--text-column" in line
    line = train(train_file=write(tmp_path / "a.csv", ("text", "stars"), *good))
    assert "label" in line and "text, stars" in line and "--label-column" in line
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    assert "empty" in train(train_file=empty)
    assert "a.csv" in train(train_file=write(tmp_path / "a.csv", columns))
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"text,label\ncaf\xe9,a\n")
    line = train(train_file=latin)
    assert "UTF-8" in line and "2" in line
    line = train(train_file=write(tmp_path / "a.csv", columns, *good), eval_file=write(tmp_path / "b.csv", columns, ("x", "c")))
    assert "b.csv" in line and "'c'" in line and "a, b" in line
    assert "two classes" in train(train_file=write(tmp_path / "a.csv", columns, ("x", "a"), ("y", "a")))
    line = train(train_file=write(tmp_path / "a.csv", columns, *good, ("x", "")))
    assert "label" in line and "3" in line
    line = train(train_file=write(tmp_path / "a.csv", columns, *good), eval_file=few_reviews["unlabeled"])
    assert "unlabeled.txt" in line and "label" in line
    assert ".xyz" in train(train_file=shutil.copy(few_reviews["train"], tmp_path / "a.xyz"))


def test_models_that_are_wrong(train, tiny_bert, tmp_path, capsys, few_reviews):
    broken = tmp_path / "model"
    shutil.copytree(tiny_bert, broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "truncated or corrupt" in train(model=broken)
    weights.unlink()
    assert "no weights" in train(model=broken)
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "refused" in train(model=broken)
    weights.write_bytes(whole)
    raw = config.read_text()
    config.write_text(raw.replace('"bert"', '"gptj"'))
    assert "supported are: bert" in train(model=broken)
    config.unlink()
    assert "config.json" in train(model=broken)
    config.write_text(raw)
    (broken / "tokenizer.json").write_text("{")
    assert "tokenizer" in train(model=broken)
    assert "no such" in train(model="./nowhere")
    assert "trained classification head" in fail(capsys, "evaluate", "--model", tiny_bert, "--file", few_reviews["eval"])
    tensors = load_file(tiny_bert / "model.safetensors")
    save_file(tensors | {"strange.weight": np.zeros((2, 2), np.float32)}, weights)
    shutil.copy(tiny_bert / "tokenizer.json", broken)
    assert "strange.weight" in train(model=broken)


def test_output_directories_that_are_not_ours(train, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    assert "not empty" in train(output=other)
    assert "not empty" in train("--resume", output=other)
    assert "not a directory" in train(output=other / "thesis.txt")
    assert (other / "thesis.txt").read_text() == "precious"
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_text_that_is_empty_is_not_predicted_for(trained, tiny_bert, capsys):
    model = str(trained[0] / "model")
    assert "text 2 is empty" in fail(capsys, "predict", "--model", model, "some text", " ")
    labels = ("--labels", "good,bad")
    assert "a text is empty" in fail(capsys, "zero-shot", "--model", tiny_bert, *labels, "")


@pytest.fixture
def at_a_terminal():
    """Ctrl-C is not ignored, as a shell has it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_a_run_begins_is_said(at_a_terminal, monkeypatch, tmp_path, capsys, number, code):
    monkeypatch.setattr("ftjax.cli.run", lambda command: os.kill(os.getpid(), number) or time.sleep(1))
    before = signal.getsignal(signal.SIGTERM)
    train = ["train", "--model", "m", "--train-file", "a.csv", "--output", str(tmp_path)]

    def said(*more):
        with pytest.raises(SystemExit) as end:
            main([*train, *more])
        assert end.value.code == code and signal.getsignal(signal.SIGTERM) is before
        return capsys.readouterr().err

    assert said() == "ftjax: interrupted before the first checkpoint; start it again.\n"
    (tmp_path / "config.json").touch()
    assert said() == "ftjax: interrupted before the first checkpoint; go on with --resume.\n"
    assert said("--resume") == "ftjax: interrupted before the first checkpoint; the same command goes on.\n"
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    assert said() == "ftjax: interrupted; the checkpoints made so far are kept, go on with --resume.\n"


def test_a_plan_is_interrupted_at_once_and_leaves_ctrl_c_as_it_was(monkeypatch):
    before, seen = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr("ftjax.cli.run", lambda command: seen.append(signal.getsignal(signal.SIGINT)))
    main(["plan", "--model", "bert-base"])
    main(["benchmark", "--model", "bert-base"])
    assert seen == [signal.SIG_DFL, before] and signal.getsignal(signal.SIGINT) is before


def test_empty_and_long_texts_are_allowed_and_counted(tiny_bert, tmp_path):
    rows = [("", "a"), ("   ", "b"), ("long " * 90, "a"), ("fine", "b")]
    file = write(tmp_path / "a.csv", ("text", "label"), *rows)
    done = run_command("train", "--model", tiny_bert, "--train-file", file, "--output", tmp_path / "run", *TINY)
    assert done.returncode == 0, done.stderr
    assert "4 rows (2 with an empty text, 1 cut to 64 tokens)" in done.stderr


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(tiny_bert, few_reviews, tmp_path):
    done = run_command(
        *("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--output", tmp_path / "run", *TINY),
        *("--learning-rate", "1e38", "--max-gradient-norm", "0", "--save-every", "1"),
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ftjax: Step ") and "the loss is" in last and "is kept" in last
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert "Traceback" not in done.stderr


def test_a_data_set_directory_early_stopping_and_pairs(tiny_bert, few_reviews, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split, name in (("train", "train"), ("test", "eval")):
        with few_reviews[name].open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], str(number), row["label"] == "fresh") for number, row in enumerate(csv.DictReader(file))]
        write(data / f"{split}.csv", ("sentence", "other", "good"), *[(a, b, int(good)) for a, b, good in rows])
    done = run_command(
        *("train", "--model", tiny_bert, "--dataset", data, "--eval-split", "test", "--output", tmp_path / "run", "--json"),
        *("--text-column", "sentence", "--text-pair-column", "other", "--label-column", "good", *TINY[:-1], "9"),
        *("--early-stopping", "2", "--metric", "matthews", "--learning-rate", "1e-12", "--dropout", "0"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 3 * 8 and result["best_step"] == 3 * 8  # of equals the latest
    assert "stopping early" in done.stderr
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}
