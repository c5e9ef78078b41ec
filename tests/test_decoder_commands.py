"""Decoders through the commands that were there for encoders: training, evaluation, prediction."""

import csv
import json
import re

import numpy as np
import pytest
from conftest import run_command
from decoders import FAMILIES, write_decoder
from safetensors.numpy import load_file
from test_generate import write_tokenizer

from ftjax.cli import main
from ftjax.config import TrainConfig
from ftjax.errors import InputError
from ftjax.prepare import prepare
from ftjax.pretrained import load_pretrained

FLAGS = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--epochs", "1", "--json")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny random language models whose tokenizers have no token for padding and put nothing around a text."""
    found = {}
    for name in ("gpt2", "llama"):
        found[name] = tmp_path_factory.mktemp(name)
        write_decoder(found[name], FAMILIES[name])
        write_tokenizer(found[name])
    return found


def train(model, files, output, capsys, *more):
    arguments = ["train", "--model", model, "--train-file", files["train"], "--eval-file", files["eval"], "--output", output]
    main([str(a) for a in (*arguments, *FLAGS, *more)])
    return json.loads(capsys.readouterr().out)


def test_a_gpt2_is_trained_scored_and_put_to_use(models, few_reviews, tmp_path, capsys):
    rows = tmp_path / "train.csv"
    rows.write_text(few_reviews["train"].read_text() + ",fresh\n")  # a text without a token
    arguments = ("train", "--model", models["gpt2"], "--train-file", rows, "--eval-file", few_reviews["eval"])
    done = run_command(*arguments, "--output", tmp_path / "run", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "1 with an empty text" in done.stderr
    assert "Not in the checkpoint, initialised and trained: classifier.kernel\n" in done.stderr
    result, model = json.loads(done.stdout), tmp_path / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["pad_token_id"] == config["eos_token_id"] == 2  # transformers' class finds the last token by it
    assert "ftjax_classifier" not in config
    tensors = load_file(model / "model.safetensors")
    assert tensors["score.weight"].shape == (2, 32)
    assert result["trained_parameters"] == sum(t.size for t in tensors.values())

    main(["evaluate", "--model", str(model), "--file", str(few_reviews["eval"]), "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["loss"] == pytest.approx(result["eval"]["loss"], rel=1e-5)
    with few_reviews["eval"].open(encoding="utf-8", newline="") as file:
        texts = [row["text"][:40] for row in csv.DictReader(file)][:3]
    main(["predict", "--model", str(model), *texts])
    together = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main(["predict", "--model", str(model), texts[0]])
    alone = json.loads(capsys.readouterr().out)
    assert alone["scores"] == pytest.approx(together[0]["scores"], rel=1e-5)


def letters(path, number, seed):
    """Rows of random letters whose label says which of two is the last."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice([*"abcdef"], rng.integers(3, 9))) + "yn"[i % 2] for i in range(number)]
    path.write_text("text,label\n" + "".join(f"{text},{text[-1]}\n" for text in texts))
    return path


@pytest.mark.parametrize(
    ("name", "how", "changed"),
    [
        ("gpt2", (), r".*"),
        ("llama", ("--method", "partial", "--train-parameters", "last:1,head"), r"model\.layers\.2\..*|score\.weight"),
        (
            "llama",
            ("--method", "partial", "--train-parameters", "lora:4,head", "--scan-layers"),
            r"model\.layers\.\d\.self_attn\.[qv]_proj\.weight|score\.weight",
        ),
    ],
)
def test_a_decoder_learns_to_classify(name, how, changed, models, tmp_path, capsys):
    files = {"train": letters(tmp_path / "train.csv", 120, 0), "eval": letters(tmp_path / "eval.csv", 60, 1)}
    result = train(models[name], files, tmp_path / "run", capsys, *how, "--epochs", 6, "--learning-rate", 1e-2)
    assert result["eval"]["accuracy"] >= 0.95
    before, after = load_file(models[name] / "model.safetensors"), load_file(tmp_path / "run" / "model" / "model.safetensors")
    different = {n for n, value in after.items() if n not in before or value.tobytes() != before[n].tobytes()}
    assert different == {n for n in after if re.fullmatch(changed, n)}


def test_losses_and_loops_are_for_the_models_that_have_them(models, tiny_bert, few_reviews, tmp_path):
    mixed = {"method": "self-supervised"}
    for model, more, words in (
        (models["gpt2"], mixed, "masked-lm.*a decoder .* take causal-lm"),
        (models["gpt2"], mixed | {"self_supervised_loss": ("masked",)}, "masked: unknown"),
        (tiny_bert, mixed | {"self_supervised_loss": ("causal-lm",)}, "causal-lm.*an encoder .* take masked-lm"),
        (tiny_bert, {"scan_layers": True}, "is no decoder"),
    ):
        config = TrainConfig(str(model), tmp_path / "run", few_reviews["train"], max_length=64, **more)
        with pytest.raises(InputError, match=words):
            prepare(config, lambda line: None)


@pytest.mark.long
def test_adaptation_to_texts_comes_before_training(models, few_reviews, tmp_path, capsys):
    more = ("--adapt-epochs", "1", "--adapt-loss", "causal-lm", "--unlabeled-file", few_reviews["unlabeled"])
    train(models["llama"], few_reviews, tmp_path / "run", capsys, *more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "adaptation" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "causal_lm_loss" in line]
    adapted = load_file(tmp_path / "run" / "adaptation" / "model" / "model.safetensors")
    base = load_file(models["llama"] / "model.safetensors")
    assert adapted.keys() == base.keys()
    assert not np.array_equal(adapted["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert "score.weight" in load_file(tmp_path / "run" / "model" / "model.safetensors")


def test_a_frozen_llama_is_run_once_and_the_cache_changes_nothing(models, few_reviews, tmp_path, capsys):
    results = []
    for where in ("auto", "off"):
        more = ("--method", "partial", "--train-parameters", "head", "--epochs", "2", "--prefix-cache", where)
        results.append(train(models["llama"], few_reviews, tmp_path / where, capsys, *more))
    assert results[0]["trained_parameters"] == 64  # classifier.kernel
    kernels = [load_file(tmp_path / w / "model" / "model.safetensors")["score.weight"] for w in ("auto", "off")]
    assert kernels[0].tobytes() == kernels[1].tobytes()
    base, trained = (load_pretrained(directory).params for directory in (models["llama"], tmp_path / "auto" / "model"))
    assert all(np.array_equal(np.asarray(value), np.asarray(trained[name])) for name, value in base.items())


def test_self_supervised_and_lora(models, few_reviews, tmp_path, capsys):
    unlabeled = ("--unlabeled-file", str(few_reviews["unlabeled"]))
    more = (
        *unlabeled,
        "--method",
        "self-supervised",
        "--self-supervised-loss",
        "causal-lm",
        "--train-parameters",
        "lora:2,head",
    )
    result = train(models["gpt2"], few_reviews, tmp_path / "run", capsys, *more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("causal_lm_loss" in line and "causal_lm_accuracy" in line for line in lines)
    assert result["trained_parameters"] == 2 * 2 * 2 * (32 + 32) + 64  # query and value of 2 layers, and the head
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not [name for name in tensors if "lora" in name or name == "lm_head.weight"]
