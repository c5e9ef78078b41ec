"""Several texts in one row: what is said of each, and what is learnt from it, is what a row of its own would have given."""

import dataclasses
import re
import signal

import decoders
import families
import jax
import numpy as np
import optax
import pytest
from conftest import fail, random_params, run_command, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import write_tokenizer
from test_resume import content, interrupt, logged

from ftjax.config import TrainConfig
from ftjax.data.batches import make_batch
from ftjax.data.packing import batch_rows, make_packed, pack, packed, packed_batches, packed_like
from ftjax.data.tokenize import Examples, Pieces
from ftjax.errors import InputError
from ftjax.evaluation import all_outputs, predict_step
from ftjax.models import Lora, build, with_lora
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification, class_logits
from ftjax.objectives.multi_label import MultiLabel
from ftjax.objectives.regression import Regression
from ftjax.parallel import Compiled, parallel_step, pmap_step, replicate, split_batch
from ftjax.partition import label
from ftjax.prepare import prepare
from ftjax.pretrained import load_pretrained
from ftjax.sharding import Layout, data_mesh
from ftjax.step import create_state, train_step
from ftjax.tasks import task_class

KINDS = [kind for kind in families.golden_shapes() if kind.endswith(families.HEADS[0]) and not kind.startswith("t5")]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SGD = optax.sgd(1.0)
CLOZE = ("--classifier", "cloze", "--description", "fresh=good", "rotten=bad")


def examples_of(lengths, *, vocab=64, types=2, labels="class"):
    """Random examples of these lengths with labels: one of two classes, a set of them, a number, or a class for each token."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens, kinds = (rng.integers(low, high, starts[-1]).astype(np.int32) for low, high in ((5, vocab), (0, types)))
    shape = {"set": (len(lengths), 2), "tags": (starts[-1],)}.get(labels, (len(lengths),))
    given = rng.standard_normal(shape, np.float32) if labels == "number" else rng.integers(0, 2, shape).astype(np.int32)
    return Examples(tokens, kinds, starts, given, truncated=0, empty=0, per_token=labels == "tags")


LENGTHS = [9, 3, 12, 5, 4, 4, 7, 2, 11, 6, 3, 8]


def both(lengths=LENGTHS, row_length=16, rows=8, **more):
    """(the examples in rows of their own, the same in packed rows), a batch each."""
    examples = examples_of(lengths, **more)
    shared = dataclasses.replace(packed(examples, rows), row_length=row_length, most=5)
    chosen = pack(shared.lengths, row_length, shared.most, seed=0)
    assert len(chosen) <= rows < len(lengths)
    apart = make_batch(examples, np.arange(len(lengths)), max(lengths), len(lengths), 0)
    return apart, make_packed(shared, chosen, 0, rows, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_every_example_is_in_one_row_once_with_its_label_and_the_position_of_its_first_token(lengths, batch_size, epoch):
    examples = examples_of(lengths)
    shared = packed(examples, batch_size)
    rows, row_length = shared.batch_rows, shared.row_length
    assert rows < 4 or rows % (4 if rows < 16 else 8) == 0
    assert max(lengths) <= row_length
    assert row_length % 8 == 0
    found = []
    for batch in packed_batches(shared, rows, pad_token_id=0, seed=1, epoch=epoch):
        assert batch["input_ids"].shape == (rows, row_length)
        assert np.array_equal(batch["attention_mask"] > 0, batch["segment_ids"] > 0)
        assert np.array_equal(batch["labels"] >= 0, batch["example_ids"] >= 0)
        for row, place in np.argwhere(batch["example_ids"] >= 0):
            example, at = batch["example_ids"][row, place], batch["reads"][row, place]
            own = batch["segment_ids"][row] == place + 1
            assert np.flatnonzero(own)[0] == at
            assert np.array_equal(batch["input_ids"][row][own], examples.tokens[examples.at(example)])
            assert np.array_equal(batch["token_type_ids"][row][own], examples.token_types[examples.at(example)])
            assert batch["labels"][row, place] == examples.labels[example]
            found.append(example)
    assert sorted(found) == list(range(len(lengths)))
    assert max(len(row) for row in pack(shared.lengths, row_length, shared.most, seed=1)) <= shared.most


@pytest.mark.parametrize("labels", ["class", "tags"])
def test_texts_that_lie_in_files_of_several_processes_are_packed_alike(labels):
    plain = examples_of(LENGTHS, labels=labels)
    cut = plain.starts[5]
    pieces = {name: Pieces([(whole := getattr(plain, name))[:cut], whole[cut:]]) for name in ("tokens", "token_types")}
    if labels == "tags":
        pieces["labels"] = Pieces([plain.labels[:cut], plain.labels[cut:]])
    ways = [packed(dataclasses.replace(plain, **more).knowing(plain.labeled), 8) for more in ({}, pieces)]
    assert ways[1].labeled.all()
    for one, other in zip(*(packed_batches(way, 4, pad_token_id=0, seed=0) for way in ways), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("batch_size", [8, 32, 100, 1000])
def test_an_update_has_about_as_many_texts_as_asked_for_and_hardly_any_padding(batch_size):
    lengths = np.random.default_rng(0).gamma(4.0, 7.0, 20_000).astype(int).clip(4, 128)  # as sentences have them
    shared = packed(examples_of(lengths), batch_size)
    texts = len(lengths) / shared.packed_rows * shared.batch_rows
    assert texts == pytest.approx(batch_size, rel=0.15)
    assert lengths.sum() / (shared.packed_rows * shared.row_length) > 0.97


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classifier", ["pooled", "first-token", "mean"])
def test_every_encoder_says_of_a_text_what_it_says_of_it_alone(kind, classifier, tmp_path):
    families.write_golden(tmp_path, kind)
    model_type = kind.split()[0]
    loaded = load_pretrained(tmp_path, classifier=classifier)
    types = families.ENCODERS[model_type][1].get("type_vocab_size", 2)
    apart, together = both(vocab=families.VOCAB, types=types)
    alone, shared = jax.jit(lambda params: tuple(class_logits(loaded.model, params, b, None) for b in (apart, together)))(
        loaded.params
    )
    assert families.differ(in_order(shared, together), np.asarray(alone)) <= 1e-5


def in_order(outputs, batch):
    """What is said of packed examples, in their order."""
    real = batch["example_ids"] >= 0
    return np.asarray(outputs)[real][np.argsort(batch["example_ids"][real])]


@pytest.mark.parametrize(
    ("labels", "task", "classifier"),
    [
        ("class", "classification", "pooled"),
        ("set", "multi-label", "first-token"),
        ("number", "regression", "mean"),
        ("tags", "token-classification", "every-token"),
    ],
)
@pytest.mark.parametrize("longest", [12, 40], ids=["texts as learnt from", "a longer one"])
def test_texts_that_are_scored_share_rows_too(labels, task, classifier, longest):
    model = build(tiny_config(), num_labels=1 if labels == "number" else 2, classifier=classifier)
    params, step = random_params(model), Compiled(predict_step(model), data_mesh(), donate=False, gather=True)
    lengths = [*LENGTHS, longest]
    apart = examples_of(lengths, labels=labels)
    shared = packed_like(apart, packed(examples_of(LENGTHS * 40, labels=labels), 64))
    assert shared.batch_rows == 24 and shared.row_length == max(16, longest)
    assert shared.packed_rows < len(lengths)
    alone, together = (
        all_outputs(step, params, examples, (40,), batch_rows(examples, 8), 0, make=task_class(task)().batches)
        for examples in (apart, shared)
    )
    for one, other, length in zip(alone, together, lengths, strict=True):
        expected = one[:length] if labels == "tags" else one
        np.testing.assert_allclose(other, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", decoders.FAMILIES)
def test_every_decoder_says_of_a_text_what_it_says_of_it_alone(name, tmp_path):
    decoders.write_decoder(tmp_path, decoders.FAMILIES[name], labels=("no", "yes"), causal_lm=False)
    loaded = load_pretrained(tmp_path)
    apart, together = both(vocab=96)
    alone, shared = jax.jit(lambda params: tuple(class_logits(loaded.model, params, b, None) for b in (apart, together)))(
        loaded.params
    )
    np.testing.assert_allclose(in_order(shared, together), np.asarray(alone), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("loss", "labels", "classifier"),
    [
        *((Classification, "class", kind) for kind in ("pooled", "first-token", "mean")),
        (MultiLabel, "set", "pooled"),
        (Regression, "number", "pooled"),
        (Classification, "tags", "every-token"),
    ],
)
def test_what_is_learnt_is_what_rows_of_their_own_give(loss, labels, classifier):
    model = build(tiny_config(**NO_DROPOUT), num_labels=1 if labels == "number" else 2, classifier=classifier)
    params = random_params(model)
    terms = (Term("loss", 1.0, loss(model)),)
    apart, together = both(labels=labels)
    state = create_state(params, label(params, "all", layers=2), terms, SGD)
    alone, shared = (jax.jit(train_step)(state, batch) for batch in (apart, together))
    for name, value in alone[0].trainable.items():
        np.testing.assert_allclose(np.asarray(shared[0].trainable[name]), np.asarray(value), rtol=2e-5, atol=2e-7)
    for name, (total, weight) in alone[1].items():
        assert (float(shared[1][name][0]), float(shared[1][name][1])) == pytest.approx((float(total), float(weight)), rel=1e-5)


def test_low_rank_matrices_with_dropout_of_their_own_read_several_positions_too():
    model, _ = tiny_model(config=NO_DROPOUT)
    modules = tuple(f"encoder.layers.{i}.attention.{name}" for i in range(2) for name in ("query", "key", "value"))
    _, together = both()
    seeds, found = np.arange(8, dtype=np.uint32), []
    for rate in (0.0, 1e-9):  # which drops nothing, but takes the other way
        with_it = with_lora(model, Lora(2, 4.0, modules, dropout=rate))
        rng = np.random.default_rng(0)
        values = {n: 0.1 * rng.standard_normal(shape.shape).astype(np.float32) for n, shape in with_it.shapes.items()}
        found.append(jax.jit(lambda values, m=with_it: class_logits(m, values, together, seeds))(values))
    np.testing.assert_allclose(np.asarray(found[0]), np.asarray(found[1]), rtol=1e-5, atol=1e-6)


def test_devices_and_microbatches_change_nothing_with_dropout():
    model, params = tiny_model()
    terms = (Term("classification", 1.0, Classification(model)),)
    names = label(params, "all", layers=2)
    _, batch = both(rows=16, lengths=LENGTHS * 2)
    whole, metrics = jax.jit(train_step)(create_state(params, names, terms, SGD), batch)
    for microbatches in (1, 2):
        state = create_state(params, names, terms, SGD, microbatches=microbatches)
        mesh = data_mesh()
        layout = Layout(mesh, zero1=True)
        spread = Compiled(parallel_step(layout), mesh, donate=False)(layout.place(state), batch)
        mapped = pmap_step(train_step)(replicate(state, mesh), split_batch(batch, 8))
        for new, found in (spread, mapped):
            assert float(found["loss"][0]) == pytest.approx(float(metrics["loss"][0]), rel=1e-5)
            assert float(found["accuracy"][1]) == len(LENGTHS) * 2
            for name, value in whole.trainable.items():
                np.testing.assert_allclose(np.asarray(new.trainable[name]), np.asarray(value), rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def arguments(tiny_bert, few_reviews):
    """A run in packed rows, but for its --output."""
    return [
        *("train", "--model", tiny_bert, "--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--packing"),
        *("--epochs", 3, "--batch-size", 16, "--learning-rate", "1e-3", "--max-length", 64, "--log-every", 1, "--resume"),
        *("--save-every", 2),
    ]


def test_a_run_sees_every_text_and_a_killed_one_ends_with_the_same_bytes(arguments, tmp_path):
    done = run_command(*arguments, "--output", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Packed: \d\.\d texts a row of \d+ tokens, \d\d% full; 4 rows an update, about 1\d texts\.", done.stderr)
    status, stderr = interrupt(arguments, tmp_path / "cut", signal.SIGKILL, logged(tmp_path / "cut", 5))
    assert status == -signal.SIGKILL, stderr
    again = run_command(*arguments, "--output", tmp_path / "cut")
    assert again.returncode == 0, again.stderr
    assert "Resuming after step" in again.stderr
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_one_length_is_one_program_and_frozen_layers_are_computed_in_every_step(tiny_bert, few_reviews, tmp_path):
    config = TrainConfig(
        str(tiny_bert),
        tmp_path / "run",
        few_reviews["train"],
        max_length=64,
        batch_size=40,
        method="partial",
        train_parameters="last:1,head",
        packing=True,
    )
    said: list[str] = []
    run = prepare(config, said.append)
    assert (
        "The first 1 of 2 layers are frozen, without dropout; their output is computed in every step (rows are packed)." in said
    )
    made = [
        *run.data.task.batches(
            run.data.train, run.data.buckets, batch_rows(run.data.train, 40), pad_token_id=0, seed=0, labeled_rows=0
        )
    ]
    assert len(made) == run.data.steps_per_epoch(40) == run.steps // config.epochs
    assert len({tuple((name, value.shape) for name, value in batch.items()) for batch in made}) == 1
    (stage,) = run.stages
    assert stage.model.prefix_layers == 1 and not stage.prefix


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--method", "self-supervised"), "--packing: is for labels alone; leave it out, or take --method full or partial."),
        (
            ("--task", "masked-lm"),
            "--packing: is for --task classification, multi-label, regression, token-classification; leave it out.",
        ),
        (CLOZE, "--packing: a cloze reads one text a row; leave it out, or take another --classifier."),
    ],
)
def test_what_cannot_share_rows_is_refused(more, said, arguments, tmp_path, capsys):
    assert said in fail(capsys, *arguments, "--output", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_rows_that_devices_cannot_share_are_refused_and_the_size_that_is_named_will_do(tiny_bert, few_reviews, tmp_path):
    config = TrainConfig(str(tiny_bert), tmp_path / "run", few_reviews["train"], max_length=64, batch_size=8, packing=True)
    with pytest.raises(InputError, match="packed rows, that cannot be split over 8 devices x 1 microbatches; take") as refused:
        prepare(config, lambda line: None)
    other = int(str(refused.value).rstrip(".").split()[-1])
    assert batch_rows(prepare(dataclasses.replace(config, batch_size=other), lambda line: None).data.train, other) % 8 == 0


def test_a_decoders_texts_and_the_tags_of_words_share_rows_too(few_reviews, tiny_bert, tmp_path):
    decoders.write_decoder(tmp_path / "gpt2", decoders.FAMILIES["gpt2"])
    write_tokenizer(tmp_path / "gpt2")
    words = [f"{row} word{row}\tB-x O\n" for row in range(40)]
    (tmp_path / "tags.tsv").write_text("tokens\ttags\n" + "".join(words))
    for number, command in enumerate(
        (
            ("--model", tmp_path / "gpt2", "--train-file", few_reviews["train"]),
            ("--model", tiny_bert, "--train-file", tmp_path / "tags.tsv", "--task", "token-classification"),
        )
    ):
        output = tmp_path / f"run{number}"
        done = run_command("train", *command, "--max-length", 64, "--epochs", 1, "--packing", "--output", output)
        assert done.returncode == 0, done.stderr
        assert "Packed: " in done.stderr
