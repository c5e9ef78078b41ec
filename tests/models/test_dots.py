"""Dots with a backward pass of their own: what they compute, in any shape, and that the CPU has a fast path for all of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.models.dots import matmul, products, weighted
from ftjax.models.layers import attention

SHAPES = [(1, 1, 1, 1, 1), (1, 1, 7, 2, 8), (2, 8, 1, 1, 4), (3, 2, 17, 2, 1), (2, 5, 5, 3, 16), (1, 33, 32, 2, 8)]
"""Batch, queries, keys, heads, head size."""


def normal(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape)


def rounded(x: jax.Array, dtype: jnp.dtype) -> np.ndarray:
    """What is left of x in a dtype, as float64."""
    return np.asarray(x.astype(dtype).astype(jnp.float32), np.float64)


def close(ours: jax.Array, expected: np.ndarray, like: jnp.dtype) -> None:
    """Equal but for the order of sums in float32 (and the rounding to the dtype in which it comes back)."""
    scale = max(1.0, np.abs(expected).max())
    assert ours.dtype == like
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), expected, rtol=0, atol=(1e-2 if like == jnp.bfloat16 else 1e-5) * scale
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16], ids=["given float32", "given bfloat16"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_products_and_sums_of_attention_and_their_gradients_are_those_of_rounded_operands(shape, given, dtype):
    batch, queries, keys, heads, size = shape
    query, key = normal(0, batch, queries, heads, size).astype(given), normal(1, batch, keys, heads, size).astype(given)
    weights, g = jax.nn.softmax(normal(2, batch, heads, queries, keys)).astype(given), normal(3, batch, heads, queries, keys)
    context = normal(4, batch, queries, heads, size)
    dtype, given = jnp.dtype(dtype), jnp.dtype(given)

    @jax.jit
    def both(query, key, weights, g, context):
        scores, backward = jax.vjp(lambda query, key: products(query, key, dtype), query, key)
        mixed, of_mixed = jax.vjp(lambda weights, value: weighted(weights, value, dtype), weights, key)
        return scores, mixed, backward(g), of_mixed(context)

    scores, mixed, (d_query, d_key), (d_weights, d_value) = both(query, key, weights, g, context)
    q, k, w, g, c = (rounded(x, dtype) for x in (query, key, weights, g, context))
    close(scores, np.einsum("bqhd,bkhd->bhqk", q, k), jnp.float32)
    close(mixed, np.einsum("bhqk,bkhd->bqhd", w, k), jnp.float32)
    close(d_query, np.einsum("bhqk,bkhd->bqhd", g, k), given)
    close(d_key, np.einsum("bhqk,bqhd->bkhd", g, q), given)
    close(d_weights, np.einsum("bqhd,bkhd->bhqk", c, k), given)
    close(d_value, np.einsum("bhqk,bqhd->bkhd", w, c), given)


@pytest.mark.parametrize("rows, features_in, features_out", [(1, 1, 1), (3, 7, 5), (16, 33, 2), (5, 64, 32), (40, 96, 8)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_dense_layers_gradients_are_those_of_rounded_operands(rows, features_in, features_out, dtype):
    x, kernel, g = normal(0, rows, features_in), normal(1, features_in, features_out), normal(2, rows, features_out)
    dtype = jnp.dtype(dtype)
    y, (dx, d_kernel) = jax.jit(
        lambda x, kernel, g: (lambda y, backward: (y, backward(g)))(*jax.vjp(lambda x, k: matmul(x, k, dtype), x, kernel))
    )(x, kernel, g)
    x, kernel, g = (rounded(a, dtype) for a in (x, kernel, g))
    close(y, x @ kernel, jnp.float32)
    close(dx, g @ kernel.T, jnp.float32)
    close(d_kernel, x.T @ g, jnp.float32)


def operands_of_dots(function, *arguments) -> set[tuple[str, str]]:
    """The dtypes of the operands of every dot in a compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    dtypes = dict(re.findall(r"%([\w.-]+)(?::| =) (\w+)\[", text)) | dict(re.findall(r"([\w.-]+): (\w+)\[", text))
    dots = re.findall(r" dot\(([^)]*)\)", text)
    assert dots
    return {tuple(dtypes[name.strip().lstrip("%")] for name in dot.split(",")) for dot in dots}  # type: ignore[misc]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU's compiler")
def test_in_bfloat16_no_dot_of_attention_or_of_a_dense_layer_is_a_float32_one_on_a_cpu():
    x, kernel = normal(0, 4, 72, 64), normal(1, 64, 64)

    def loss(x, kernel):
        query, key, value = (matmul(x, kernel * i, jnp.dtype(jnp.bfloat16)).reshape(4, 72, 2, 32) for i in (1.0, 2.0, 3.0))
        seeds = jnp.arange(4, dtype=jnp.uint32)
        bias = jnp.zeros((4, 1, 1, 72))
        return attention(query, key, value, bias, dropout_rate=0.1, seeds=seeds, dtype=jnp.dtype(jnp.bfloat16)).sum()

    assert operands_of_dots(jax.grad(loss, argnums=(0, 1)), x, kernel) == {("bf16", "bf16")}
