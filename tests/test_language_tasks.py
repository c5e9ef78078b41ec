"""Tasks whose targets are texts, through the commands: causal-lm, dialogue, masked-lm, seq2seq."""

import json
import math
import shutil

import families
import jax
import numpy as np
import pytest
from conftest import random_params
from decoders import FAMILIES, decoder_logits, write_decoder
from safetensors.numpy import load_file
from test_generate import CHAT_TEMPLATE, write_tokenizer

from ftjax.cli import main
from ftjax.data.files import Rows
from ftjax.data.tokenize import load_tokenizer
from ftjax.models import CONFIGS, build
from ftjax.objectives.causal_lm import labeled_tokens, token_scores
from ftjax.pretrained import load_pretrained
from ftjax.tasks import task_class
from ftjax.tasks.seq2seq import text_scores

TEXTS = ["to be or not to be", "that is the question", "a", "", "whether 'tis nobler in the mind to suffer " * 3]
FLAGS = ("--max-length", "32", "--batch-size", "8", "--buckets", "1", "--epochs", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny random decoders with a tokenizer of single bytes and a chat template."""
    found = {}
    for name in ("gpt2", "llama"):
        found[name] = tmp_path_factory.mktemp(name)
        write_decoder(found[name], FAMILIES[name])
        write_tokenizer(found[name], template=CHAT_TEMPLATE)
    return found


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(capsys, *arguments):
    main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    return json.loads(out) if out.count("\n") == 1 else [json.loads(line) for line in out.splitlines()]


def refused(capsys, *arguments):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def tiny(name):
    raw = FAMILIES[name]
    model = build(CONFIGS[raw["model_type"]].from_dict(raw, "config.json"), causal_lm=True)
    return model, random_params(model, scale=0.2)


@pytest.mark.parametrize("task", ["causal-lm", "dialogue"])
def test_packed_documents_do_not_see_each_other_and_have_the_loss_of_single_ones(task, models):
    tokenizer, (model, params) = load_tokenizer(models["llama"]), tiny("llama")
    task = task_class(task)()
    texts = TEXTS
    if task.name == "dialogue":
        texts = [[{"role": "user", "content": t[:2]}, {"role": "assistant", "content": t[:3]}] for t in TEXTS[:3]]
    rows = task.checked(Rows(texts, None, None, "a"))
    examples = task.encode(rows, tokenizer, 60)
    loss = jax.jit(lambda batch: task.loss(model)(params, batch, None)[0])

    def total(seed):
        where = {"pad_token_id": 0, "seed": seed, "labeled_rows": 0}
        return np.sum([loss(batch) for batch in task.batches(examples, (64,), 3, **where)], axis=0)

    packed, single = total(5), total(None)
    assert packed[1] == single[1] == (examples.labels >= 0).sum()
    assert packed[0] == pytest.approx(single[0], rel=1e-6)

    (batch,) = task.batches(examples, (64,), 8, pad_token_id=0, seed=0, labeled_rows=0)
    assert batch["segment_ids"].max() > 1
    scores = jax.jit(lambda ids: token_scores(model, params, labeled_tokens(batch | {"input_ids": ids})))
    row = int(batch["segment_ids"].max(1).argmax())
    first = batch["segment_ids"] == 1
    changed = np.where(first & (np.arange(len(first)) == row)[:, None], 9, batch["input_ids"])
    before, after = (np.asarray(scores(ids)) for ids in (batch["input_ids"], changed))
    assert np.array_equal(before[row][~first[row]], after[row][~first[row]])
    assert not np.array_equal(before[row][first[row]], after[row][first[row]])


def reference(directory, texts, most):
    """(nats, tokens) of texts under a model, each document's pieces by themselves, from whole rows of logits."""
    loaded, tokenizer = load_pretrained(directory, labels=(), causal_lm=True), load_tokenizer(directory)
    pieces = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        pieces += [ids[start : start + most] for start in range(0, len(ids) - 1, most - 1)]
    ids, mask = np.zeros((len(pieces), most), np.int32), np.zeros((len(pieces), most), np.int32)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)], mask[row, : len(piece)] = piece, 1
    logits = decoder_logits(loaded.model, loaded.params, {"input_ids": ids, "attention_mask": mask}).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(logprobs[:, :-1], ids[:, 1:, None], axis=-1)[..., 0] * mask[:, 1:]
    return float(nats.sum()), int(mask[:, 1:].sum())


def test_a_decoder_learns_a_corpus_and_is_scored_exactly(models, tmp_path, capsys):
    train = write_rows(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS * 24])
    held = write_rows(tmp_path / "eval.jsonl", [{"text": text} for text in ["not to be", "the question", "", "é" + TEXTS[4]]])
    common = ("--task", "causal-lm", "--model", models["gpt2"], "--train-file", train, "--eval-file", held, "--json", *FLAGS)
    run = tmp_path / "run"
    result = command(capsys, "train", *common, "--output", run, "--learning-rate", "1e-2")
    scores, model = result["eval"], run / "model"
    before = command(capsys, "evaluate", "--model", models["gpt2"], "--file", held, "--max-length", 32, "--json")
    assert scores["loss"] < before["loss"] - 0.3
    after = command(capsys, "evaluate", "--model", model, "--file", held, "--max-length", 32, "--json")
    assert after.pop("examples") == 4
    assert after == pytest.approx(scores, rel=1e-5)
    texts = [json.loads(line)["text"] for line in held.read_text().splitlines()]
    nats, tokens = reference(model, texts, 32)
    assert scores["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert scores["bits_per_character"] == pytest.approx(nats / math.log(2) / sum(map(len, texts)), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / (sum(map(len, texts)) + 1), rel=1e-5)
    assert json.loads((model / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    lines = command(capsys, "predict", "--model", model, "to be", "that", "--max-new-tokens", "4")
    assert [line["text"] for line in lines] == ["to be", "that"] and all(line["prediction"] for line in lines)


@pytest.mark.parametrize(("spec", "touched"), [("last:1", "h.1."), ("lora:2", "attn.c_attn.weight")])
def test_a_part_of_a_decoder_learns_plain_text(spec, touched, models, tmp_path, capsys):
    train = tmp_path / "train.txt"
    train.write_text("\n".join(TEXTS * 8))
    how = ("--method", "partial", "--train-parameters", spec, "--output", tmp_path / "run", "--json", *FLAGS)
    result = command(capsys, "train", "--task", "causal-lm", "--model", models["gpt2"], "--train-file", train, *how)
    tokens = len(train.read_text()) + 2
    pieces = -(-(tokens - 1) // 31)
    assert result["steps"] == -(-pieces // 8)  # one text, cut into rows
    before, after = (load_file(path / "model.safetensors") for path in (models["gpt2"], tmp_path / "run" / "model"))
    changed = {n for n, value in after.items() if value.tobytes() != before[n].tobytes()}
    assert changed and all(touched in name for name in changed)


def test_a_model_is_trained_from_scratch(models, tmp_path, capsys):
    bare, train = tmp_path / "bare", write_rows(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    shutil.copytree(models["gpt2"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    common = ("train", "--task", "causal-lm", "--model", bare, "--train-file", train, "--output", tmp_path / "run", *FLAGS)
    assert "no weights" in refused(capsys, *common)
    assert "--from-scratch" in refused(capsys, *common, "--from-scratch", "--method", "partial")
    assert not (tmp_path / "run").exists()
    result = command(capsys, *common, "--from-scratch", "--json")
    loaded = load_pretrained(tmp_path / "run" / "model", labels=(), causal_lm=True)
    assert loaded.new == () and result["frozen_parameters"] == 0
    assert result["trained_parameters"] == sum(value.size for value in loaded.params.values())


@pytest.mark.parity
def test_transformers_gives_the_loss_of_what_was_trained(models, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    held = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:3]])
    files = ("--train-file", held, "--test-file", held, "--output", tmp_path / "run")
    result = command(capsys, "train", "--task", "causal-lm", "--model", models["llama"], *files, *FLAGS, "--json")
    model, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not any(notes.values()), notes
    tokenizer, nats, tokens = load_tokenizer(models["llama"]), 0.0, 0
    for text in TEXTS[:3]:
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.numel() - 1)
        tokens += ids.numel() - 1
    assert result["test"]["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def turns(*texts):
    return {"turns": list(texts)}


def test_a_decoder_learns_to_answer(models, tmp_path, capsys):
    rows = [turns("hi", "yo"), turns("bye", "no", "why?", "so")] * 2
    train, held = write_rows(tmp_path / "train.jsonl", rows * 160), write_rows(tmp_path / "test.jsonl", rows[:3])
    common = ("--task", "dialogue", "--model", models["llama"], "--train-file", train, "--test-file", held, "--json")
    run = tmp_path / "run"
    more = ("--output", run, *FLAGS, "--max-length", "64", "--learning-rate", "1e-2")
    result = command(capsys, "train", *common, *more)
    assert result["test"]["loss"] < 0.5
    scores = command(capsys, "evaluate", "--model", run / "model", "--file", held, "--json")  # the model knows its task
    assert scores.pop("examples") == 3
    assert scores == pytest.approx(result["test"], rel=1e-4)
    told = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in told] == [3, 6, 3]  # what the assistant says, and the ends of its turns
    lines = command(capsys, "predict", "--model", run / "model", "--file", held, "--max-new-tokens", "6")
    assert [line["prediction"] for line in lines] == ["yo", "so", "yo"]
    assert command(capsys, "predict", "--model", run / "model", "hi", "--max-new-tokens", "6")["prediction"] == "yo"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (turns("hi"), "row 2: has no turn of the assistant"),
        (
            {"turns": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "row 2: the role 'robot' is unknown",
        ),
        (turns("x" * 70, "b"), "row 2: 92 tokens come before the assistant's first word, and a row holds 32"),
    ],
)
def test_conversations_that_make_no_sense_are_one_line(row, words, models, tmp_path, capsys):
    train = write_rows(tmp_path / "train.jsonl", [turns("a", "b"), row])
    common = ("train", "--task", "dialogue", "--train-file", train, "--output", tmp_path / "run", *FLAGS)
    line = refused(capsys, *common, "--model", models["llama"])
    assert words in line and str(train) in line
    assert not (tmp_path / "run").exists()


def test_dialogues_need_a_template_and_speakers(models, tmp_path, capsys):
    shutil.copytree(models["llama"], tmp_path / "plain")
    write_tokenizer(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    train, text = write_rows(tmp_path / "train.jsonl", [turns("a", "b")]), tmp_path / "train.txt"
    text.write_text("a\nb\n")
    common = ("train", "--task", "dialogue", "--output", tmp_path / "run", *FLAGS)
    assert "no chat template" in refused(capsys, *common, "--train-file", train, "--model", tmp_path / "plain")
    assert "plain text says not who speaks" in refused(capsys, *common, "--train-file", text, "--model", models["llama"])
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_an_encoder_learns_masked_tokens(tiny_mlm, few_reviews, tmp_path, capsys):
    common = ("train", "--task", "masked-lm", "--model", tiny_mlm, "--train-file", few_reviews["unlabeled"])
    held, run = few_reviews["eval"], tmp_path / "run"
    more = ("--output", run, "--eval-file", held, "--mask-probability", "0.3", "--learning-rate", "1e-2", *FLAGS, "--json")
    result = command(capsys, *common, *more)
    scores = command(capsys, "evaluate", "--model", run / "model", "--file", held, "--max-length", "32", "--json")
    assert scores.pop("examples") == 30
    assert scores == pytest.approx(result["eval"], rel=1e-5)  # a row always has the same masks
    line = command(capsys, "predict", "--model", run / "model", "a film that I would see again")
    assert line["tokens"] == 2 and line["loss"] > 0


@pytest.fixture
def t5(tmp_path):
    """A tiny random T5 with a tokenizer of single bytes."""
    directory = tmp_path / "t5"
    families.write_golden(directory, "t5 relu, tied")
    write_tokenizer(directory, vocab_size=families.VOCAB)
    config = json.loads((directory / "config.json").read_text()) | {"eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.long
def test_an_encoder_and_a_decoder_learn_to_turn_texts_into_others(t5, tmp_path, capsys):
    rows = [{"source": a, "target": b} for a, b in (("ab", "ba"), ("cd", "dc ef"), ("longer", "no"))]
    train, held = write_rows(tmp_path / "train.jsonl", rows * 160), write_rows(tmp_path / "test.jsonl", rows)
    common = ("train", "--task", "seq2seq", "--model", t5, "--train-file", train, "--test-file", held, "--json", *FLAGS)
    run = tmp_path / "run"
    result = command(capsys, *common, "--output", run, "--learning-rate", "3e-2", "--max-target-length", "10")
    assert result["test"]["accuracy"] == 1.0
    assert result["test"]["chrf"] == result["test"]["rougeL"] == pytest.approx(100)
    lines = command(capsys, "predict", "--model", run / "model", "ab", "longer")
    assert [line["prediction"] for line in lines] == ["ba", "no"]
    line = command(capsys, "generate", "--model", run / "model", "--prompt", "cd", "--max-new-tokens", "8", "--json")
    assert line["text"] == "dc ef"
    told = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in told] == [line["prediction"] for line in told] == [row["target"] for row in rows]


def test_scores_of_texts_are_those_of_the_usual_packages():
    targets = ["the cat sat on the mat", "there is a dog in the garden"]
    assert list(text_scores(targets, targets).values()) == pytest.approx([100] * 5)
    found = text_scores(["the cat sat on a mat", "a dog is in the garden"], targets)
    assert found["rouge1"] == pytest.approx(100 * (5 / 6 + 2 * 6 / (6 + 7)) / 2)
    assert found["rouge2"] == pytest.approx(100 * (3 / 5 + 2 * 3 / (5 + 6)) / 2)
    assert 30 < found["bleu"] < 50 < found["chrf"] < 80


def test_models_that_do_not_suit_a_task_are_one_line(t5, models, tiny_bert, tmp_path, capsys):
    train = write_rows(tmp_path / "train.jsonl", [{"source": "a", "target": "b", "text": "a"}] * 2)
    common = ("train", "--train-file", train, "--output", tmp_path / "run", *FLAGS)
    for task, model, words in (
        ("seq2seq", models["gpt2"], "gpt2 has no encoder and decoder"),
        ("causal-lm", t5, "an encoder and a decoder"),
        ("causal-lm", tiny_bert, "take masked-lm"),
        ("masked-lm", models["gpt2"], "take causal-lm"),
    ):
        assert words in refused(capsys, *common, "--task", task, "--model", model)
    for name in ("causal-lm", "masked-lm"):
        assert "needs no labels as it is" in refused(
            capsys, *common, "--task", name, "--model", models["gpt2"], "--method", "self-supervised"
        )
    assert not (tmp_path / "run").exists()
