"""What `--precision`, `--hidden-dtype` and `--reduce-dtype` change, and what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, random_params, tiny_model
from decoders import FAMILIES
from families import ENCODERS

from ftjax import sharding
from ftjax.config import TrainConfig
from ftjax.models import CONFIGS, build
from ftjax.models.layers import LayerNorm, RMSNorm
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.optimizer import adamw
from ftjax.parallel import Compiled, parallel_step
from ftjax.partition import label
from ftjax.prepare import suited
from ftjax.sharding import Layout, data_mesh
from ftjax.step import create_state

STEPS = 12


def losses(precision="float32", hidden_dtype="float32", reduce_dtype="float32", devices=None):
    """(the loss of every step on the same batch, the same dropout masks each time; what has been trained)."""
    model, params = tiny_model(precision=precision)
    model = dataclasses.replace(model, hidden_dtype=hidden_dtype)
    layout = Layout(data_mesh(devices or jax.devices()[:1]), zero1=bool(devices))
    terms = (Term("classification", 1.0, Classification(model)),)
    state = create_state(params, label(params, "all", layers=2), terms, adamw(list(params), 5e-3), precision=precision)
    step = Compiled(parallel_step(layout, dtype=precision, reduce_dtype=reduce_dtype), layout.mesh, donate=True)
    state, found = layout.place(state), []
    for _ in range(STEPS):
        state, metrics = step(state, random_batch(rows=32))
        found.append(float(metrics["loss"][0]))
    return np.array(found), jax.device_get(state.trainable)


@pytest.fixture(scope="module")
def reference():
    return losses()


@pytest.mark.parametrize("hidden_dtype", ["float32", "bfloat16"])
def test_the_loss_curve_of_bfloat16_is_within_a_hundredth_of_float32s(reference, hidden_dtype):
    found, params = losses("bfloat16", hidden_dtype)
    assert reference[0][-1] < 0.9 * reference[0][0], "something was learnt"
    np.testing.assert_allclose(found, reference[0], rtol=0.01)
    assert all(value.dtype == np.float32 for value in params.values())


def test_gradients_summed_in_bfloat16_differ_by_their_rounding(monkeypatch, reference):
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    found, params = losses(devices=jax.devices(), reduce_dtype="bfloat16")
    np.testing.assert_allclose(found, reference[0], rtol=0.01)
    whole, _ = losses(devices=jax.devices())
    np.testing.assert_allclose(whole, reference[0], rtol=1e-4)
    assert not np.array_equal(found, whole)
    assert all(value.dtype == np.float32 for value in params.values())


@pytest.mark.parametrize("name", ["bert", "electra", "mpnet", "gpt2", "llama 3", "gemma2"])
def test_hidden_states_are_kept_in_bfloat16_and_what_comes_out_is_float32(name):
    raw = FAMILIES[name] if name in FAMILIES else {"model_type": name, **ENCODERS[name][1]}
    config = CONFIGS[raw["model_type"]].from_dict(raw, "config.json")
    wide = build(config, num_labels=2, precision="bfloat16")
    narrow = dataclasses.replace(wide, hidden_dtype="bfloat16")
    params = random_params(wide, scale=0.05)
    batch = random_batch(rows=4, length=10)

    def logits(model):
        module = model.bind(params)
        states = module.hidden_states(batch, readout=True)
        return states, module.classify(states[-1])

    states, found = logits(narrow)
    assert {state.dtype for state in states[:-1]} == {jnp.dtype("bfloat16")}
    assert (states[-1].dtype, found.dtype) == (jnp.float32, jnp.float32)
    _, right = logits(wide)
    np.testing.assert_allclose(found, right, atol=0.05 * float(jnp.abs(right).max()))


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_compute_in_float32_and_give_back_the_dtype_they_got(norm):
    layer, x = norm(16, 1e-6), 3.0 + jax.random.normal(jax.random.key(0), (8, 16))
    exact = layer(x)
    assert exact.dtype == jnp.float32
    rounded = layer(x.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    again = layer(x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(rounded.astype(jnp.float32), again, rtol=2**-8, atol=1e-3)  # but for the last rounding


def test_the_platform_chooses_where_nothing_is_asked_for(tmp_path):
    model, _ = tiny_model(precision="bfloat16")
    layout = Layout(data_mesh())
    config = TrainConfig(model="bert", output=tmp_path, precision="bfloat16")
    assert suited(model, config, layout).hidden_dtype == "float32"  # a CPU
    asked = dataclasses.replace(config, hidden_dtype="bfloat16", reduce_dtype="bfloat16")
    found = suited(model, asked, layout)
    assert (found.hidden_dtype, found.reduce_dtype, found.attention) == ("bfloat16", "bfloat16", "reference")
