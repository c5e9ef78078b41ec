"""The attention kernel of TPUs, interpreted, against the reference that all else is held to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from decoders import FAMILIES
from jax.sharding import Mesh, PartitionSpec

from ftjax.models import CONFIGS, build
from ftjax.models.decoder import causal, softcap
from ftjax.models.splash import SHORTEST, fits, splash_attention

ROWS, LENGTH, HEADS, KEY_VALUE_HEADS, SIZE = 2, 256, 4, 2, 64


@pytest.fixture(scope="module")
def qkv():
    """Queries, keys and values; and the segments of two rows, the second with padding at its end."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(ROWS, LENGTH, heads, SIZE) for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)]
    segments = np.ones((ROWS, LENGTH), np.int32)
    segments[:, 100:] = 2
    segments[1, 200:] = 0
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)), jnp.asarray(segments)


def reference(query, key, value, segments, window, scale, cap):
    """Spelled out."""
    query = query.reshape(ROWS, LENGTH, KEY_VALUE_HEADS, -1, SIZE)
    scores = softcap(jnp.einsum("bqngd,bknd->bngqk", query, key) * scale, cap)
    seen = causal(0, LENGTH, jnp.ones((ROWS, LENGTH)), window) & (segments[:, :, None] == segments[:, None, :])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("bngqk,bknd->bqngd", weights, value).reshape(ROWS, LENGTH, HEADS, SIZE)


@pytest.mark.parametrize(("window", "cap"), [(None, None), (50, None), (None, 5.0)])
def test_the_kernel_and_its_gradients_equal_the_reference(qkv, window, cap):
    arrays, segments = qkv
    wanted = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, HEADS, SIZE))

    def loss(attention, *arrays):
        found = attention(*arrays)
        return (found * wanted).sum(), found

    def kernel(*arrays):
        return splash_attention(*arrays, None, segments, window=window, scale=0.2, softcap=cap, interpret=True)

    def spelled_out(*arrays):
        return reference(*arrays, segments, window, 0.2, cap)

    one, other = (
        jax.value_and_grad(lambda *arrays, f=f: loss(f, *arrays), (0, 1, 2), has_aux=True)(*arrays)
        for f in (kernel, spelled_out)
    )
    for found, right in zip(
        jax.tree.leaves(one[0][1]) + list(one[1]), jax.tree.leaves(other[0][1]) + list(other[1]), strict=True
    ):
        np.testing.assert_allclose(found, right, atol=2e-5)


def test_the_kernel_is_for_long_rows_within_a_mapped_step():
    assert fits(2048, 64)
    assert not fits(2048, 80)
    assert not fits(2000, 64)
    assert not fits(128, 64)
    raw = FAMILIES["llama"] | {"head_dim": 64}
    model = build(CONFIGS["llama"].from_dict(raw, "config.json"), causal_lm=True, precision="bfloat16")
    body = dataclasses.replace(model, attention="fused").bind(random_params(model)).decoder
    segments = jnp.ones((8, SHORTEST), jnp.int32)
    found = []

    def look(segments):
        found.append(body.fused(0, segments) is not None)
        return segments

    look(segments)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    jax.eval_shape(jax.shard_map(look, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")), segments)
    assert found == [False, True]
