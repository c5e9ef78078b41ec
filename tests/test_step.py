"""The step: exactness of (sum, weight), gradients by hand, device counts, compiled cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_batch, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.models import build
from ftjax.objectives import Term, average, measure
from ftjax.objectives.classification import Classification, cross_entropy
from ftjax.objectives.masked_lm import MaskedLM, mask_tokens
from ftjax.optimizer import adamw, learning_rate_schedule
from ftjax.parallel import Compiled, parallel_step, pmap_step, replicate, split_batch
from ftjax.partition import label
from ftjax.random import example_seeds
from ftjax.sharding import Layout, data_mesh
from ftjax.step import create_state, train_step
from ftjax.step import eval_step as pure_eval_step

SPECIAL = (0, 1, 2, 3, 4)
step_of = jax.jit(train_step)
eval_step = jax.jit(pure_eval_step)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-7}  # float32, sums in another order
SGD, SMALL_STEPS = optax.sgd(1.0), optax.sgd(0.1)  # made once, as models are: equal states then share compiled steps


@functools.cache
def shared_model(**config):
    return tiny_model(config=config)


@functools.cache
def shared_adamw(names, learning_rate, clip):
    return adamw(names, learning_rate, max_gradient_norm=clip)


def make_state(spec="all", method="self-supervised", microbatches=1, learning_rate=1e-3, clip=1.0, config=None, optimizer=None):
    model, params = shared_model(**(config or {}))
    terms = (Term("classification", 1.0, Classification(model)),)
    if method == "self-supervised":
        terms += (Term("masked_lm", 0.3, MaskedLM(model, 4, SPECIAL)),)
    labels = label(params, spec, layers=2)
    names = tuple(name for name, found in labels.items() if found == "trained")
    optimizer = optimizer or shared_adamw(names, learning_rate, clip)
    return create_state(params, labels, terms, optimizer, microbatches=microbatches)


def plain_sgd(**kwargs):
    """A state whose step is minus the gradient: the new parameters show the gradient itself."""
    return make_state(optimizer=SGD, **kwargs)


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **(tolerance or TOLERANCE)), a, b)


@pytest.mark.parametrize(
    ("method", "microbatches", "unlabeled", "unrolled"),
    [("full", 4, 5, False), ("full", 4, 5, True), ("self-supervised", 2, 0, False), ("self-supervised", 8, 5, False)],
)
def test_accumulation_equals_the_whole_batch_with_dropout_and_ragged_labels(method, microbatches, unlabeled, unrolled):
    batch = random_batch(rows=8, unlabeled=unlabeled)
    whole, metrics = step_of(plain_sgd(method=method), batch)
    state = dataclasses.replace(plain_sgd(method=method, microbatches=microbatches), unrolled=unrolled)
    parts, metrics_of_parts = step_of(state, batch)
    assert_same(whole.trainable, parts.trainable)
    assert_same(metrics, metrics_of_parts)


def test_padding_rows_and_columns_change_nothing():
    batch = random_batch(rows=6, length=12)
    wider = {
        name: np.pad(
            value, [(0, 2), *[(0, 8)] * (value.ndim - 1)], constant_values={"labels": -100, "example_ids": -1}.get(name, 0)
        )
        for name, value in batch.items()
    }
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    state, metrics = step_of(plain_sgd(method="full", config=no_dropout), batch)
    padded, metrics_padded = step_of(plain_sgd(method="full", config=no_dropout), wider)
    assert_same(metrics, metrics_padded)
    position = "encoder.embeddings.position.embedding"
    assert_same(state.trainable | {position: 0}, padded.trainable | {position: 0})


def test_masked_positions_do_not_depend_on_padding():
    batch = random_batch(rows=6, length=12, seed=3)
    seeds = example_seeds(jax.random.key(0), jnp.asarray(batch["example_ids"]))

    def masked(ids, mask):
        found = mask_tokens(jnp.asarray(ids), jnp.asarray(mask > 0), seeds, mask_token_id=4, vocab_size=64)
        return {
            (r, int(p), int(t)) for r in range(6) for p, t in zip(found.positions[r], found.labels[r], strict=True) if t >= 0
        }

    wider = [np.pad(batch[name], [(0, 0), (0, 28)]) for name in ("input_ids", "attention_mask")]
    narrow = masked(batch["input_ids"], batch["attention_mask"])
    assert narrow == masked(*wider)
    expected = np.maximum(1, np.round(batch["attention_mask"].sum(-1) * 0.15)).astype(int)
    assert [sum(r == row for r, _, _ in narrow) for row in range(6)] == list(expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31 - 1), st.integers(2, 40))
def test_masking_touches_only_maskable_tokens_and_remembers_them(seed, length):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 64, (3, length)).astype(np.int32)
    maskable = rng.random((3, length)) < 0.7
    seeds = jnp.asarray(rng.integers(0, 2**32, 3, dtype=np.uint32))
    found = mask_tokens(jnp.asarray(ids), jnp.asarray(maskable), seeds, mask_token_id=63, vocab_size=64)
    changed = np.asarray(found.input_ids) != ids
    used = np.asarray(found.labels) >= 0
    chosen = np.zeros_like(maskable)
    for row in range(3):
        positions = np.asarray(found.positions)[row][used[row]]
        chosen[row, positions] = True
        assert np.array_equal(np.asarray(found.labels)[row][used[row]], ids[row][positions])
    assert not (changed & ~chosen).any()
    assert not (chosen & ~maskable).any()
    assert np.array_equal(chosen.sum(-1) > 0, maskable.sum(-1) > 0)


def test_of_many_chosen_tokens_80_percent_are_masked_and_10_random():
    ids = jnp.full((256, 40), 7, jnp.int32)
    seeds = example_seeds(jax.random.key(5), jnp.arange(256))
    found = mask_tokens(ids, jnp.ones_like(ids, bool), seeds, mask_token_id=4, vocab_size=64, probability=0.5)
    chosen = (np.asarray(found.labels) >= 0).sum()
    assert chosen == 256 * 20
    assert abs((np.asarray(found.input_ids) == 4).sum() / chosen - 0.8) < 0.02
    assert abs((np.asarray(found.input_ids) == 7).sum() / (256 * 40) - 0.55) < 0.02


def test_cross_entropy_by_hand():
    losses, weights = cross_entropy(jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])), jnp.array([1, 0, -100]))
    np.testing.assert_allclose(np.asarray(losses), [-np.log(0.8), -np.log(0.5), 0.0], rtol=1e-6)
    assert list(np.asarray(weights)) == [1, 1, 0]


def test_the_loss_is_l_plus_lambda_l_self_and_terms_have_their_own_weights():
    state, batch = make_state(), random_batch(unlabeled=3)
    _, metrics = step_of(state, batch)
    labelled, masked = metrics["classification_loss"], metrics["masked_lm_loss"]
    assert float(labelled[1]) == 5
    assert float(masked[1]) == np.maximum(1, np.round(batch["attention_mask"].sum(-1) * 0.15)).sum()
    expected = labelled[0] / labelled[1] + 0.3 * masked[0] / masked[1]
    np.testing.assert_allclose(float(metrics["loss"][0]), float(expected), rtol=1e-6)


def test_gradient_by_finite_differences():
    state, batch = plain_sgd(), jax.tree.map(jnp.asarray, random_batch(unlabeled=2))
    key = jax.random.fold_in(state.key, 0)

    @jax.jit
    def loss(params):
        losses, _ = measure(state.objective, params, batch, key)
        return sum(term.coefficient * average(losses[term.name]) for term in state.objective)

    new, _ = step_of(state, batch)
    gradient = jax.tree.map(lambda old, now: old - now, state.trainable, new.trainable)
    rng = np.random.default_rng(0)
    direction = {n: jnp.asarray(rng.standard_normal(p.shape), jnp.float32) for n, p in state.trainable.items()}
    step = 1e-3
    shifted = [loss(jax.tree.map(lambda p, d, s=s: p + s * step * d, state.trainable, direction)) for s in (1, -1)]
    numeric = (shifted[0] - shifted[1]) / (2 * step)
    exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    np.testing.assert_allclose(float(numeric), exact, rtol=2e-2)


def test_rows_without_a_label_have_no_say_in_the_labelled_term():
    batch = random_batch(rows=8, unlabeled=4)
    labelled = {name: value[4:] for name, value in batch.items()}
    whole, _ = step_of(plain_sgd(method="full"), batch)
    part, _ = step_of(plain_sgd(method="full"), labelled)
    assert_same(whole.trainable, part.trainable)


def test_a_batch_without_any_label_is_finite_and_moves_nothing_labelled():
    state, metrics = step_of(plain_sgd(method="full"), random_batch(unlabeled=8))
    assert float(metrics["classification_loss"][1]) == 0
    assert float(metrics["loss"][0]) == 0
    assert_same(state.trainable, plain_sgd(method="full").trainable)


def test_dropout_differs_between_steps_and_is_the_same_when_a_step_is_repeated():
    batch = random_batch()
    state = make_state(learning_rate=0.0, method="full")
    first, once = step_of(state, batch)
    _, again = step_of(state, batch)
    _, later = step_of(first, batch)
    assert float(once["loss"][0]) == float(again["loss"][0])
    assert float(once["loss"][0]) != float(later["loss"][0])
    _, other_seed = step_of(dataclasses.replace(state, key=jax.random.key(1)), batch)
    assert float(other_seed["loss"][0]) != float(once["loss"][0])


def test_the_two_terms_do_not_share_dropout_masks():
    model, params = tiny_model()
    loss = Classification(model)
    both = (Term("a", 1.0, loss), Term("b", 1.0, loss))
    losses, _ = measure(both, params, jax.tree.map(jnp.asarray, random_batch()), jax.random.key(0))
    assert float(losses["a"][0]) != float(losses["b"][0])


@pytest.mark.parametrize(("spec", "microbatches"), [("all", 1), ("last:1,head", 2)])
def test_eight_devices_equal_one(spec, microbatches):
    batches = [random_batch(rows=16, seed=seed, unlabeled=3) for seed in range(3)]

    def train(devices):
        mesh = data_mesh(devices)
        step = Compiled(parallel_step(Layout(mesh, zero1=False)), mesh, donate=True)
        state = replicate(make_state(spec, microbatches=microbatches, optimizer=SMALL_STEPS), mesh)
        history = []
        for batch in batches:
            state, metrics = step(state, batch)
            history.append(jax.tree.map(float, metrics))
        return jax.device_get(state.params), history

    one, eight = train(jax.devices()[:1]), train(jax.devices())
    assert_same(one[1], eight[1])
    assert_same(one[0], eight[0], rtol=1e-4, atol=1e-6)  # after three steps


def test_pmap_equals_jit():
    batches = [random_batch(rows=16, seed=seed, unlabeled=3) for seed in range(2)]
    # SGD: Adam's quotient of two small numbers would magnify differences in the order of sums
    state, step = make_state(optimizer=SMALL_STEPS), jax.jit(train_step)
    mapped_state, mapped = replicate(make_state(optimizer=SMALL_STEPS), data_mesh()), pmap_step(train_step)
    for batch in batches:
        state, metrics = step(state, batch)
        mapped_state, mapped_metrics = mapped(mapped_state, split_batch(batch, 8))
        assert_same(metrics, mapped_metrics)
    assert_same(state.params, mapped_state.params, rtol=1e-4, atol=1e-6)
    assert all(value.sharding.is_fully_replicated for value in mapped_state.trainable.values())


def compiled_step(spec, layers=4, **kwargs):
    config = tiny_config(num_hidden_layers=layers, hidden_size=32, intermediate_size=128, vocab_size=512, **kwargs)
    model = build(config, num_labels=2)
    labels = label(model.shapes, spec, layers=layers)
    names = [name for name, found in labels.items() if found == "trained"]
    state = jax.eval_shape(
        functools.partial(
            create_state,
            labels=labels,
            objective=(Term("classification", 1.0, Classification(model)),),
            optimizer=adamw(names, 1e-3),
        ),
        model.shapes,
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), random_batch(rows=8, length=32))
    return jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()


def test_compiled_cost_of_partial_is_well_under_full():
    full, last, head = (compiled_step(spec) for spec in ("all", "last:1,head", "head"))
    flops = [program.cost_analysis()["flops"] for program in (full, last, head)]
    assert flops[1] < 0.62 * flops[0]  # forward of 4 layers and backward of 1: (4 + 2) / (4 * 3) of the matmuls
    assert flops[2] < 0.45 * flops[0]
    memory = [program.memory_analysis().temp_size_in_bytes for program in (full, last, head)]
    assert memory[1] < 0.7 * memory[0]


def test_the_weights_of_microbatches_cost_no_second_forward_pass():
    state = make_state(method="full")
    flops = jax.jit(train_step).lower(state, random_batch()).compile().cost_analysis()["flops"]

    def gradient_alone(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        loss = lambda p: average(measure(state.objective, {**state.frozen, **p}, batch, key)[0]["classification"])  # noqa: E731
        gradients = jax.grad(loss)(state.trainable)
        with jax.numpy_dtype_promotion("standard"):
            return state.optimizer.update(gradients, state.optimizer_state, state.trainable)

    alone = jax.jit(gradient_alone).lower(state, random_batch()).compile().cost_analysis()["flops"]
    assert flops < 1.1 * alone


def test_one_compilation_a_shape_over_many_steps():
    step = Compiled(train_step, data_mesh(jax.devices()[:1]), donate=True)
    state = replicate(make_state(method="full"), step.mesh)
    for seed in range(6):
        state, _ = step(state, random_batch(seed=seed, length=8 + 4 * (seed % 2)))
    assert len(step.programs) == 2
    assert int(state.step) == 6


def test_eval_step_is_deterministic_and_measures_every_term():
    state, batch = make_state(), random_batch(unlabeled=2)
    first, second = eval_step(state, batch), eval_step(state, batch)
    assert set(first) == {"classification_loss", "masked_lm_loss", "accuracy", "masked_lm_accuracy"}
    assert_same(first, second, rtol=0, atol=0)


def test_schedules():
    linear = learning_rate_schedule(1.0, steps=10)
    assert [float(linear(s)) for s in (0, 5, 9, 10)] == pytest.approx([1.0, 0.5, 0.1, 0.0], abs=1e-6)
    warm = learning_rate_schedule(1.0, steps=10, warmup_steps=4, schedule="cosine")
    assert [float(warm(s)) for s in (0, 2, 4, 10)] == pytest.approx([0.0, 0.5, 1.0, 0.0], abs=1e-6)
    assert float(learning_rate_schedule(2.0, steps=10, schedule="constant")(7)) == 2.0


def test_decay_is_for_matrices_and_clipping_bounds_the_update():
    from ftjax.optimizer import decay_labels

    model, _ = tiny_model()
    kinds = decay_labels(model.shapes)
    assert {n.rsplit(".", 1)[1] for n, kind in kinds.items() if kind == "decay"} == {"kernel", "embedding"}
    state = plain_sgd(method="full")
    clipped = make_state(method="full", optimizer=optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0)))
    _, metrics = step_of(state, random_batch())
    assert float(metrics["gradient_norm"][0]) > 1e-3
    new, _ = step_of(clipped, random_batch())
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, new.trainable, clipped.trainable))
    assert float(moved) == pytest.approx(1e-3, rel=1e-2)
