"""ZeRO, stage 1: eight devices that each keep a part end where one device that keeps all does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, tiny_model

from ftjax import sharding, zero
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.optimizer import adamw
from ftjax.parallel import TPU_OPTIONS, Compiled, compiled, parallel_step
from ftjax.partition import label
from ftjax.sharding import Layout, data_mesh, spec
from ftjax.step import apart, create_state

SPECIAL = (0, 1, 2, 3, 4)


@pytest.fixture(autouse=True)
def cut_small_arrays(monkeypatch):
    """The tests' model is tiny: let its matrices be cut."""
    monkeypatch.setattr(sharding, "SMALLEST", 64)


def make_state(spec="all", method="full", microbatches=1, precision="float32", clip=1e-2):
    model, params = tiny_model(precision=precision)
    terms = (Term("classification", 1.0, Classification(model)),)
    if method == "self-supervised":
        terms += (Term("masked_lm", 0.3, MaskedLM(model, 4, SPECIAL)),)
    labels = label(params, spec, layers=2)
    names = [name for name, found in labels.items() if found == "trained"]
    optimizer = adamw(names, 1e-3, max_gradient_norm=clip, eps=1e-3)
    return create_state(params, labels, terms, optimizer, microbatches=microbatches, precision=precision)


def trained(devices, zero1, steps=3, precision="float32", **kwargs):
    """(state, metrics of every step) after some steps on ragged batches with rows that have no label."""
    layout = Layout(data_mesh(devices), zero1=zero1)
    step = Compiled(parallel_step(layout, dtype=precision), layout.mesh, donate=True)
    state, history = layout.place(make_state(precision=precision, **kwargs)), []
    for seed in range(steps):
        state, metrics = step(state, random_batch(rows=32, seed=seed, unlabeled=5))
        history.append(jax.tree.map(float, metrics))
    return state, history


def assert_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol), one, other)


@pytest.mark.long
@pytest.mark.parametrize(
    ("spec", "method", "microbatches"),
    [
        ("all", "full", 1),
        ("all", "full", 2),
        ("all", "self-supervised", 4),  # with a table that is read whole besides
        ("last:1,head", "full", 2),
    ],
)
def test_parts_on_eight_devices_equal_one_device(spec, method, microbatches):
    options = {"spec": spec, "method": method, "microbatches": microbatches}
    one, metrics = trained(jax.devices()[:1], False, **options)
    eight, metrics_of_parts = trained(jax.devices(), True, **options)
    assert_close(metrics, metrics_of_parts, 2e-5, 2e-6)
    assert_close(jax.device_get(one.params), jax.device_get(eight.params), 1e-4, 1e-6)
    moments = [jax.device_get(jax.tree.leaves(state.optimizer_state)) for state in (one, eight)]
    assert_close(*moments, 1e-3, 1e-7)
    assert all(norm > 1e-2 for norm, _ in (m["gradient_norm"] for m in metrics))  # clipping was at work


def test_bfloat16_differs_by_the_rounding_of_what_is_gathered():
    one, metrics = trained(jax.devices()[:1], False, precision="bfloat16")
    eight, metrics_of_parts = trained(jax.devices(), True, precision="bfloat16")
    assert_close(metrics, metrics_of_parts, 2e-2, 1e-3)
    assert_close(jax.device_get(one.params), jax.device_get(eight.params), 0, 2e-3)
    assert all(value.dtype == np.float32 for value in eight.trainable.values())


def test_a_device_holds_an_eighth_of_what_is_cut_and_its_moments():
    state, _ = trained(jax.devices(), True, steps=1)
    cuts = Layout(data_mesh()).cuts(state.trainable)
    assert len(cuts) > 15
    shapes = {state.trainable[name].shape for name in cuts}
    for leaf in [*state.trainable.values(), *jax.tree.leaves(state.optimizer_state)]:
        assert leaf.addressable_shards[0].data.size * (8 if leaf.shape in shapes else 1) == leaf.size


def test_what_cannot_be_cut_evenly_is_cut_along_another_dimension_or_stays_whole():
    cut = lambda name, shape, **sizes: tuple(spec(f"encoder.{name}", shape, sizes))  # noqa: E731
    word, up, down = "embeddings.word.embedding", "layers.0.mlp.up.kernel", "layers.0.mlp.down.kernel"
    assert cut(word, (30522, 768), fsdp=8) == (None, "fsdp")
    assert cut(up, (768, 3072), fsdp=8) == ("fsdp", None)
    assert cut(up, (770, 3072), fsdp=8) == (None, "fsdp")
    assert cut(word, (30522, 770), fsdp=8) == (None, None)
    assert cut("layers.0.mlp.up.bias", (2**17,), fsdp=8) == ()
    assert cut(up, (2, 16), fsdp=8) == ()  # small
    assert cut(up, (768, 3072), fsdp=1) == (None, None)
    assert cut(up, (768, 3072), fsdp=4, tensor=2) == ("fsdp", "tensor")
    assert cut(down, (3072, 768), fsdp=4, tensor=2) == ("tensor", "fsdp")
    assert cut(up, (768, 3074), fsdp=4, tensor=4) == ("fsdp", None)
    assert cut("classifier.kernel", (768, 3072), tensor=2) == (None, None)


def test_gradients_are_summed_in_parts_and_no_large_array_is_summed_whole():
    layout = Layout(data_mesh())
    state = layout.place(make_state())
    step = Compiled(apart(parallel_step(layout)), layout.mesh, donate=True)
    program = step.program(dataclasses.replace(state, frozen={}), state.frozen, random_batch(rows=32))
    text = program.as_text()
    assert "reduce-scatter(" in text
    assert "all-gather(" in text


@pytest.mark.parametrize("devices", (2, 3, 8))
@pytest.mark.parametrize("dimension", (0, 1))
def test_parts_that_are_exchanged_and_added_are_those_of_the_sum(devices, dimension):
    shape = (devices, 24, 48)
    gradients = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    part = jax.P("data") if dimension == 0 else jax.P(None, "data")

    def over_devices(how, dtype):
        one = lambda g: how(g[0], "data", dimension, dtype)  # noqa: E731
        mesh = data_mesh(jax.devices()[:devices])
        return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=jax.P("data"), out_specs=part, check_vma=False))(gradients)

    np.testing.assert_allclose(over_devices(zero.exchanged, "float32"), gradients.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(over_devices(zero.summed, "float32"), over_devices(zero.scattered, "float32"))
    rounded = gradients.astype(jnp.bfloat16).astype(np.float32).sum(0)  # sent in bfloat16, added in float32
    np.testing.assert_allclose(over_devices(zero.exchanged, "bfloat16"), rounded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce_dtype", ("float32", "bfloat16"))
def test_words_looked_up_in_parts_are_those_of_the_whole_table(reduce_dtype):
    rng = np.random.default_rng(0)
    table, given = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 32), (16, 5, 32)))
    ids = rng.integers(0, 40, (16, 5))

    def one(columns, ids, given):
        found, back = jax.vjp(lambda columns: zero.lookup(columns, ids, "bfloat16", reduce_dtype), columns)
        return found, back(given)[0]

    rows, columns = jax.P("data"), jax.P(None, "data")
    mapped = jax.shard_map(one, mesh=data_mesh(), in_specs=(columns, rows, rows), out_specs=(rows, columns), check_vma=False)
    found, gradient = jax.jit(mapped)(table, ids, given)
    np.testing.assert_array_equal(found, table.astype(jnp.bfloat16).astype(np.float32)[ids])
    expected = np.zeros_like(table)
    np.add.at(expected, ids, given.astype(jnp.dtype(reduce_dtype)).astype(np.float32))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_compiler_that_does_not_know_the_options_for_tpus_compiles_without_them():
    lowered = jax.jit(lambda x: x + 1.0).lower(jnp.ones(3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options=TPU_OPTIONS)
    np.testing.assert_array_equal(compiled(lowered, "tpu", 8)(jnp.ones(3)), np.full(3, 2.0))


def test_only_a_few_chips_exchange_beside_what_they_compute():
    """The compiler refuses that for slices without links from end to end, such as v5e:4x8."""

    class Lowered:
        def compile(self, compiler_options=None):
            return compiler_options

    assert compiled(Lowered(), "tpu", 8) == TPU_OPTIONS
    assert compiled(Lowered(), "tpu", 32) is None
    assert compiled(Lowered(), "gpu", 8) is None


def test_the_norm_is_that_of_all_parts():
    rng = np.random.default_rng(0)
    whole = {"a": rng.standard_normal((16, 8)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32)}
    norm = jax.shard_map(
        lambda g: zero.norm(g, {"a": 0}, "data"),
        mesh=data_mesh(),
        in_specs=({"a": jax.P("data"), "b": jax.P()},),
        out_specs=jax.P(),
        check_vma=False,
    )(whole)
    expected = np.sqrt(sum((value**2).sum() for value in whole.values()))
    np.testing.assert_allclose(float(norm), expected, rtol=1e-6)
