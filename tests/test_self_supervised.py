"""The third method from the command line down: which terms, which rows in a batch, stages, teacher, and mistakes."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, run_command, tiny_model
from decoders import FAMILIES, write_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_generate import write_tokenizer
from test_resume import content, interrupt, logged

from ftjax.config import TrainConfig
from ftjax.data.batches import batches, choose_buckets, plan_mixed_epoch
from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples
from ftjax.errors import InputError
from ftjax.objectives import Term
from ftjax.objectives.augment import TokenDropout
from ftjax.objectives.classification import Classification
from ftjax.objectives.consistency import Consistency
from ftjax.objectives.schedule import Line
from ftjax.objectives.teacher import PREFIX
from ftjax.optimizer import adamw
from ftjax.partition import label, split
from ftjax.prepare import with_labels
from ftjax.step import create_state, train_step
from ftjax.tasks.classification import keep_labels
from ftjax.weight import Weight

TINY = ("--max-length", "64", "--batch-size", "8", "--buckets", "1", "--learning-rate", "1e-3")


def config(**changes):
    return TrainConfig(**{"model": "m", "output": "o", "train_file": "t.csv", "method": "self-supervised", **changes})


def test_losses_are_read_with_their_weights():
    assert config().losses == (("masked-lm", Weight(0.1, 0.1)),)
    asked = config(self_supervised_loss=("masked-lm=0.5", "consistency=linear:0->1", "entropy"), self_supervised_weight="2")
    assert asked.losses == (("masked-lm", Weight(0.5, 0.5)), ("consistency", Weight(0, 1)), ("entropy", Weight(2, 2)))
    assert config(method="full", self_supervised_loss=("masked-lm",)).losses == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"self_supervised_loss": ("maskd-lm",)}, "Did you mean 'masked-lm'?"),
        ({"self_supervised_loss": ("entropy", "entropy=1")}, "entropy is given twice"),
        ({"self_supervised_loss": ("entropy=-1",)}, "--self-supervised-loss entropy '-1': must be"),
        ({"self_supervised_weight": "nan"}, "--self-supervised-weight 'nan': must be"),
        (
            {"adapt_epochs": 1, "adapt_loss": ("consistency",)},
            "--adapt-loss takes masked-lm, causal-lm, contrastive",
        ),
        ({"teacher_decay": 0.9}, "--teacher-decay needs consistency or pseudo-label"),
        ({"teacher_decay": 1.0}, "at least 0 and below 1"),
        ({"unlabeled_ratio": 0.0}, "must be a positive number"),
        ({"augmentation_probability": 1.0}, "between 0 and 1"),
        ({"labels_per_class": 0}, "at least 1"),
        ({"method": "full", "confidence": 0.5}, "--confidence needs --method self-supervised"),
        ({"method": "full", "adapt_loss": ("contrastive",)}, "--adapt-loss: there is no adaptation"),
        ({"method": "partial", "self_supervised_loss": ("entropy",)}, "--self-supervised-loss needs --method self-supervised"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(InputError) as error:
        config(**changes).check()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ---- rows in a batch


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=4, max_size=80), st.integers(1, 5), st.integers(1, 5), st.data())
def test_every_batch_has_its_labelled_rows_and_each_other_row_comes_once(lengths, having, others, data):
    lengths = np.array(lengths)
    number = data.draw(st.integers(1, len(lengths) - 1))
    labeled = np.zeros(len(lengths), bool)
    labeled[data.draw(st.permutations(range(len(lengths))))[:number]] = True
    buckets = choose_buckets(lengths)
    plan = plan_mixed_epoch(lengths, labeled, buckets, having + others, having, seed=0, epoch=1)
    rows = [rows for _, rows in plan]
    assert sorted(r for part in rows for r in part if not labeled[r]) == list(np.flatnonzero(~labeled))
    assert all(labeled[part[:having]].all() and not labeled[part[having:]].any() for part in rows)
    assert all(lengths[part].max() <= bucket for bucket, part in plan)
    again = plan_mixed_epoch(lengths, labeled, buckets, having + others, having, seed=0, epoch=1)
    assert all((a[1] == b[1]).all() for a, b in zip(plan, again, strict=True))
    if len(buckets) == 1:  # every labelled row fits everywhere: none is used twice more than another
        uses = np.bincount(np.concatenate(rows).astype(int), minlength=len(lengths))[labeled]
        assert np.ptp(uses) <= 1


def test_mixed_batches_are_what_the_plan_says():
    lengths = np.full(20, 8)
    starts = np.concatenate([[0], lengths.cumsum()])
    tokens = np.arange(starts[-1], dtype=np.int32)
    labels = np.where(np.arange(20) < 4, 1, -100).astype(np.int32)
    examples = Examples(tokens, np.zeros_like(tokens), starts, labels, 0, 0)
    found = list(batches(examples, (8,), 6, pad_token_id=0, seed=0, labeled_rows=2))
    assert len(found) == 4
    assert [int((b["labels"] >= 0).sum()) for b in found] == [2] * 4
    assert sorted(i for b in found for i in b["example_ids"] if i >= 4) == list(range(4, 20))


def test_labels_per_class_leaves_so_many_and_depends_on_the_seed():
    rows = Rows([f"t{i}" for i in range(40)], None, [("a", "b")[i % 2] for i in range(40)], "f")
    kept = [keep_labels(rows, ("a", "b"), 3, seed).labels for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert [kept[0].count(name) for name in ("a", "b", None)] == [3, 3, 34]
    assert with_labels(dataclasses.replace(rows, labels=kept[0])).labels.count("a") == 3
    with pytest.raises(InputError, match="has only 20 rows of 'a'"):
        keep_labels(rows, ("a", "b"), 21, 0)


# ---- the step


def state_of(terms, **more):
    model, params = tiny_model()
    labels = label(params, "last:1,head", layers=2)
    terms = terms(model)
    return create_state(params, labels, terms, adamw(split(params, labels)[0], 1e-2), **more)


@pytest.mark.long
def test_a_scheduled_coefficient_is_that_of_the_step():
    def terms(coefficient):
        return lambda model: (
            Term("classification", 1.0, Classification(model)),
            Term("more", coefficient, Classification(model)),
        )

    batch = random_batch()
    line, step = state_of(terms(Line(0.0, 1.0, 10))), jax.jit(train_step)
    for number in range(3):
        line = dataclasses.replace(line, step=jnp.int32(5 * number))
        constant = dataclasses.replace(line, objective=terms(0.5 * number)(line.objective[0].loss.model))
        found, expected = step(line, batch), step(constant, batch)
        np.testing.assert_allclose(found[1]["loss"][0], expected[1]["loss"][0], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found[0].trainable, expected[0].trainable
        )


def test_a_mean_teacher_is_the_average_of_what_trains():
    def terms(model):
        return (
            Term("classification", 1.0, Classification(model)),
            Term("consistency", 1.0, Consistency(model, TokenDropout((0,), 0.2))),
        )

    state, batch = state_of(terms, teacher_decay=0.9), random_batch(unlabeled=4)
    means = {name: np.asarray(value) for name, value in state.trainable.items()}
    assert {name.removeprefix(PREFIX) for name in state.teacher} == set(state.trainable)
    step = jax.jit(train_step)
    for _ in range(3):
        state, metrics = step(state, batch)
        means = {name: 0.9 * mean + 0.1 * np.asarray(state.trainable[name]) for name, mean in means.items()}
    for name, mean in means.items():
        np.testing.assert_allclose(state.teacher[PREFIX + name], mean, rtol=1e-5, atol=1e-7)
    without = state_of(terms)
    assert without.teacher == {}
    assert np.isfinite(float(metrics["consistency_loss"][0]))


# ---- runs


ALL = ("masked-lm=0.1", "contrastive=0.1", "label-pairs=0.5", "consistency=linear:0->1", "pseudo-label=1", "entropy=0.1")


@pytest.mark.long
def test_all_losses_together_each_logged_apart_and_a_killed_run_ends_the_same(tiny_bert, few, tmp_path):
    arguments = (
        *("train", "--model", tiny_bert, "--train-file", few, "--method", "self-supervised", "--epochs", 2, *TINY),
        *("--self-supervised-loss", *ALL, "--teacher-decay", 0.9, "--confidence", 0.5, "--unlabeled-ratio", 1),
        *("--mask-whole-words", "--log-every", 1, "--save-every", 2, "--resume"),
    )
    outputs = [tmp_path / name for name in ("straight", "killed")]
    done = run_command(*arguments, "--output", outputs[0])
    assert done.returncode == 0, done.stderr
    assert "4 rows with a label, 4 without" in done.stderr
    lines = [json.loads(line) for line in (outputs[0] / "metrics.jsonl").read_text().splitlines()]
    expected = {name.partition("=")[0].replace("-", "_") + "_loss" for name in ALL} | {"classification_loss"}
    assert expected <= set(lines[0])
    assert lines[-1]["step"] == 18  # 36 rows without a label, 4 a batch, 2 epochs
    status, stderr = interrupt(arguments, outputs[1], signal.SIGKILL, logged(outputs[1], 5))
    assert status == -signal.SIGKILL, stderr
    assert run_command(*arguments, "--output", outputs[1]).returncode == 0
    assert content(outputs[0]) == content(outputs[1])
    names = set(load_file(outputs[0] / "model" / "model.safetensors"))
    assert not any("teacher" in name for name in names)


@pytest.mark.parametrize("loss", ["masked-lm", "contrastive", "label-pairs"])
def test_adaptation_then_fine_tuning_in_one_run(loss, tiny_bert, few, few_reviews, tmp_path):
    output, rows_file = tmp_path / "run", few
    method = ("--method", "self-supervised", "--self-supervised-weight", "0", "--train-parameters", "head")
    if loss != "label-pairs":
        rows_file = few_reviews["train"]
        method = ("--method", "partial", "--train-parameters", "head", "--unlabeled-file", few_reviews["unlabeled"])
    done = run_command(
        *("train", "--model", tiny_bert, "--train-file", rows_file, "--eval-file", few_reviews["eval"], "--output", output),
        *(*method, *TINY, "--epochs", 1, "--json"),
        *("--adapt-epochs", 1, "--adapt-loss", loss, "--adapt-learning-rate", "1e-3"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {"masked-lm": 100, "contrastive": 100, "label-pairs": 24}[loss]
    assert result["adaptation"]["steps"] == -(-rows // 8)
    assert "accuracy" in result["eval"]
    adapted = load_file(output / "adaptation" / "model" / "model.safetensors")
    final = load_file(output / "model" / "model.safetensors")
    before = load_file(tiny_bert / "model.safetensors")
    layer = "encoder.layer.1.output.dense.weight"
    by_end = lambda tensors: next(v for n, v in tensors.items() if n.endswith(layer))  # noqa: E731
    assert (by_end(adapted) != by_end(before)).any()
    assert (by_end(final) == by_end(adapted)).all()  # the head alone trained from there on
    assert not any(name.startswith("classifier") for name in adapted)


@pytest.mark.long
def test_adaptation_killed_in_its_middle_goes_on(tiny_bert, few, few_reviews, tmp_path):
    arguments = (
        *("train", "--model", tiny_bert, "--train-file", few, "--unlabeled-file", few_reviews["unlabeled"], "--epochs", 1),
        *("--method", "self-supervised", *TINY, "--adapt-epochs", 1, "--save-every", 3, "--log-every", 1, "--resume"),
    )
    outputs = [tmp_path / name for name in ("straight", "killed")]
    assert run_command(*arguments, "--output", outputs[0]).returncode == 0
    status, stderr = interrupt(arguments, outputs[1], signal.SIGKILL, logged(outputs[1] / "adaptation", 5))
    assert status == -signal.SIGKILL, stderr
    done = run_command(*arguments, "--output", outputs[1])
    assert done.returncode == 0, done.stderr
    assert content(outputs[0]) == content(outputs[1])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--self-supervised-loss", "consistency", "--text-column", "text", "--label-column", "none"), "none"),
        (("--self-supervised-loss", "masked-lm=0", "--supervised-weight", "0"), "there is nothing to learn from"),
        (("--labels-per-class", "1000"), "--labels-per-class 1000"),
        (("--self-supervised-weight", "-0.1"), "--self-supervised-weight '-0.1': must be 0 or a positive number"),
        (("--self-supervised-weight", "inf"), "--self-supervised-weight 'inf': must be"),
        (("--self-supervised-loss", "entropy=nan"), "--self-supervised-loss entropy 'nan': must be"),
        (("--self-supervised-loss", "entropy=linear:0->-1"), "entropy 'linear:0->-1': must be"),
        (("--self-supervised-loss", "causal-lm"), "take masked-lm"),
    ],
)
def test_mistakes_of_the_real_command(flags, said, tiny_bert, few, tmp_path):
    refused(tiny_bert, few, tmp_path, *flags, said=said)


@pytest.mark.parametrize("loss", ["consistency", "pseudo-label", "entropy"])
def test_losses_about_unlabelled_texts_without_any(loss, tiny_bert, few_reviews, tmp_path):
    flags = ("--self-supervised-loss", loss)
    refused(tiny_bert, few_reviews["train"], tmp_path, *flags, said="learns from rows without a label, and there are none")


def test_an_empty_file_of_unlabelled_texts(tiny_bert, few, tmp_path):
    (tmp_path / "none.txt").write_text("")
    refused(tiny_bert, few, tmp_path, "--unlabeled-file", tmp_path / "none.txt", said="none.txt: ")


def test_masked_language_modelling_on_a_decoder(few, tmp_path):
    write_decoder(tmp_path / "model", FAMILIES["gpt2"])
    write_tokenizer(tmp_path / "model")
    refused(tmp_path / "model", few, tmp_path, "--max-length", "32", said="a decoder predicts the next token: take causal-lm")


@pytest.mark.parametrize("flags", [(), ("--self-supervised-loss", "consistency", "--augmentation", "token-mask")])
def test_a_vocabulary_without_a_mask_token(flags, tiny_bert, few, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model, ignore=shutil.ignore_patterns("vocab.txt", "special_tokens_map.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    refused(model, few, tmp_path, *flags, said="its tokenizer has no mask token")


def refused(model, rows, tmp_path, *flags, said):
    done = run_command(
        *("train", "--model", model, "--train-file", rows, "--method", "self-supervised", *TINY, "--output", tmp_path / "run"),
        *flags,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("ftjax: ")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
