"""The frozen prefix: the same numbers with and without a cache, and never a stale one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params, run_command, tiny_config, tiny_model

from ftjax.data.batches import batches, choose_buckets
from ftjax.data.tokenize import Examples
from ftjax.models import build
from ftjax.objectives.classification import class_logits
from ftjax.parallel import Compiled, replicate
from ftjax.partition import label, split
from ftjax.prefix import FrozenPrefix, Limits, prefix_step
from ftjax.random import example_seeds
from ftjax.sharding import data_mesh

BATCH = 8


def examples(rows=21, seed=0):
    """Random rows of 3 to 30 tokens: several buckets, ragged batches."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 31, rows)
    starts = np.concatenate([[0], lengths.cumsum()])
    tokens = rng.integers(5, 64, starts[-1]).astype(np.int32)
    return Examples(tokens, np.zeros_like(tokens), starts, rng.integers(0, 2, rows).astype(np.int32), 0, 0)


def make(spec="last:1,head", limits=None, uses=3, params=None, data=None, **config):
    """(FrozenPrefix, model with its frozen layers' dropout off, all parameters) of a model of 3 layers."""
    model = build(tiny_config(num_hidden_layers=3, **config), num_labels=2)
    params = random_params(model) if params is None else params
    trainable, frozen = split(params, label(model.shapes, spec, layers=3))
    model = model.freeze(trainable)
    mesh = data_mesh(jax.devices()[:1])
    prefix = FrozenPrefix(
        model,
        replicate(frozen, mesh),
        Compiled(prefix_step(model), mesh, donate=False),
        buckets=choose_buckets((data or examples()).lengths, most=3),
        batch_size=BATCH,
        pad_token_id=0,
        limits=limits or Limits(),
        uses=uses,
    )
    return prefix, model, params


def epoch(prefix, rows, seed=0):
    return batches(rows, prefix.buckets, BATCH, pad_token_id=0, seed=seed)


def real(batch, prefix):
    """The prefix of what is no padding, for every row."""
    lengths = batch["attention_mask"].sum(-1)
    return [np.asarray(prefix)[i, :n] for i, n in enumerate(lengths) if n]


@pytest.mark.parametrize("spec", ["last:1,head", "head"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_cached_equals_computed_bit_for_bit_whatever_company_a_row_has(spec, place, tmp_path):
    rows = examples()
    prefix, _, _ = make(spec, Limits(directory=tmp_path))
    cached, computed = prefix.cached(rows, place, lambda done, total: None), prefix.computed()
    for seed in range(3):
        for batch in epoch(prefix, rows, seed):
            kept, anew = cached(batch)["prefix"], computed(batch)["prefix"]
            assert kept.shape == anew.shape
            for a, b in zip(real(batch, kept), real(batch, anew), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spec", ["last:2", "last:1,head", "head"])
@pytest.mark.parametrize("train", [False, True])
def test_going_on_from_the_prefix_equals_starting_from_the_tokens(spec, train):
    rows = examples()
    prefix, model, params = make(spec)
    batch = next(epoch(prefix, rows))
    attached = jax.tree.map(jnp.asarray, prefix.computed()(batch))
    batch = jax.tree.map(jnp.asarray, batch)
    assert "input_ids" not in attached
    seeds = example_seeds(jax.random.key(0), batch["example_ids"]) if train else None
    logits = jax.jit(class_logits, static_argnums=0)
    whole, rest = logits(model, params, batch, seeds), logits(model, params, attached, seeds)
    np.testing.assert_allclose(np.asarray(rest), np.asarray(whole), rtol=2e-5, atol=2e-6)


def test_dropout_is_off_in_frozen_layers_and_on_in_the_rest():
    _, model, params = make("last:1,head")
    assert model.frozen == (True, True, True, False)
    assert model.prefix_layers == 2
    batch = jax.tree.map(jnp.asarray, next(epoch(make()[0], examples())))
    seeds = example_seeds(jax.random.key(0), batch["example_ids"])
    states = model.bind(params).hidden_states(batch, seeds=seeds, frozen=model.frozen)
    without = model.bind(params).hidden_states(batch, frozen=model.frozen)
    same = [bool(jnp.array_equal(a, b)) for a, b in zip(states, without, strict=True)]
    assert same == [True, True, True, False]
    assert dataclasses.replace(model, frozen=()).prefix_layers == 0


def test_a_trained_part_in_front_leaves_no_prefix():
    model, params = tiny_model()
    for spec in ("bias", "embeddings", "layernorm", "all"):
        assert model.freeze({n for n, found in label(params, spec, layers=2).items() if found == "trained"}).prefix_layers == 0


def test_a_file_is_used_again_only_for_the_very_same_model_data_and_shapes(tmp_path):
    limits, rows = Limits(directory=tmp_path, keep=True), examples()
    first, _, params = make(limits=limits)
    path = first.path(rows)
    assert make(limits=limits)[0].path(rows) == path
    name = "encoder.layers.0.mlp.up.bias"
    other_data = dataclasses.replace(rows, tokens=np.where(np.arange(len(rows.tokens)) == 7, 9, rows.tokens).astype(np.int32))
    different = [
        make(limits=limits, params={**params, name: params[name] + 1e-7})[0].path(rows),
        make(limits=limits, layer_norm_eps=1e-6)[0].path(rows),
        make("last:2,head", limits=limits)[0].path(rows),
        first.path(other_data),
        make(limits=limits, data=examples(seed=3))[0].path(rows),
    ]
    assert len({path, *different}) == 1 + len(different)
    trained = "encoder.layers.2.mlp.up.bias"  # what the prefix does not hold may differ
    assert make(limits=limits, params={**params, trained: params[trained] + 1})[0].path(rows) == path


@pytest.mark.parametrize("damage", ["shorter", "other shape", "pickle", "empty"])
def test_a_damaged_file_is_made_anew(damage, tmp_path):
    rows = examples()
    prefix, _, _ = make(limits=Limits(directory=tmp_path, keep=True))
    whole = prefix.cached(rows, "disk", lambda done, total: None)
    batch = next(epoch(prefix, rows))
    expected, path = whole(batch)["prefix"], prefix.path(rows)
    match damage:
        case "shorter":
            path.write_bytes(path.read_bytes()[:-100])
        case "other shape":
            np.save(path, np.zeros((3, 3), np.float32))
        case "pickle":
            np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "empty":
            path.write_bytes(b"")
    calls = []
    again = make(limits=Limits(directory=tmp_path, keep=True))[0].cached(rows, "disk", lambda *n: calls.append(n))
    assert calls, "the damaged file was taken"
    np.testing.assert_array_equal(again(batch)["prefix"], expected)
    calls.clear()
    make(limits=Limits(directory=tmp_path, keep=True))[0].cached(rows, "disk", lambda *n: calls.append(n))
    assert not calls, "the whole file was not taken"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_where_the_cache_goes_is_bounded_and_said(tmp_path):
    rows = [examples()]
    needed = make()[0].bytes(rows[0])
    assert needed == 4 * 16 * len(rows[0].tokens)
    assert make("head")[0].bytes(rows[0]) == 4 * 16 * len(rows[0])
    place = lambda uses=3, **limits: make(limits=Limits(directory=tmp_path, **limits), uses=uses)[0].place(rows)  # noqa: E731
    assert place()[0] == "memory"
    assert place(memory_bytes=needed - 1)[0] == "disk"
    assert place(where="disk")[0] == "disk"
    for where, words in (
        (place(memory_bytes=1, disk_bytes=1), "--prefix-cache-disk-gb"),
        (place(where="memory", memory_bytes=1), "--prefix-cache-memory-gb"),
        (place(where="off"), "--prefix-cache off"),
        (place(uses=1), "one epoch"),
    ):
        assert where[0] == "off"
        assert words in where[1]
        assert "2 of 3 layers" in where[1]


@pytest.mark.long
@pytest.mark.parametrize("spec", ["last:1,head", "head"])
def test_runs_with_and_without_the_cache_end_with_the_same_bytes(spec, tiny_bert, few_reviews, tmp_path):
    """The real command: cache in memory, on disk, none, and too small a limit."""
    ends = {}
    for name, flags in {
        "memory": (),
        "disk": ("--prefix-cache", "disk"),
        "off": ("--prefix-cache", "off"),
        "too small": ("--prefix-cache-memory-gb", "0", "--prefix-cache-disk-gb", "0"),
    }.items():
        output = tmp_path / name
        done = run_command(
            *("train", "--method", "partial", "--train-parameters", spec, "--model", tiny_bert, "--output", output),
            *("--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--test-file", few_reviews["eval"]),
            *("--epochs", 3, "--batch-size", 8, "--learning-rate", "1e-3", "--max-length", 64, "--buckets", 3, *flags),
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        untimed = [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]
        ends[name] = (
            untimed,
            (output / "model" / "model.safetensors").read_bytes(),
            (output / "predictions.jsonl").read_bytes(),
        )
        assert not (output / "prefix-cache").exists()
    assert ends["memory"] == ends["disk"] == ends["off"] == ends["too small"]
