"""Dot products with operands in the compute dtype, summed in float32: of layers, and of attention.

Their backward passes are spelled out: a cotangent arrives in float32 and would drag the whole product along; and the CPU's
compiler has a fast path for some of the forms that a product can be written in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models import nf4


def dot(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`einsum` with both operands in the compute `dtype` and a float32 result: products are summed in float32.

    float32 asks for the highest precision, because a TPU would otherwise round float32 operands to bfloat16.
    """
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x (..., features_in) @ kernel (features_in, features_out) as `dot` does it, to float32 (..., features_out).

    The backward pass is spelled out: its dots, too, have operands in the compute dtype (a cotangent arrives in float32
    and would drag them along), and a form that the CPU's compiler has a fast path for.
    """
    return dot("...i,io->...o", x, kernel, dtype)


def _matmul_forward(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    like = (jnp.zeros((0,), x.dtype), jnp.zeros((0,), kernel.dtype))
    return matmul(x, kernel, dtype), (x.astype(dtype), kernel, *like)  # the kernel as it is: a copy would stay until then


def transposed(x: jax.Array) -> jax.Array:
    """x (m, n) as (n, m), in memory: columns are gathered by 32, so that each read and write finds its neighbours cached.

    Without the barrier both steps would become one, and that one a part of the dot that reads it, which is what it is for
    the CPU's compiler to have a fast path.
    """
    m, n = x.shape
    width = math.gcd(n, 32)
    by_columns = jax.lax.optimization_barrier(x.reshape(m, n // width, width).swapaxes(0, 1))
    return by_columns.swapaxes(1, 2).reshape(n, m)


def _matmul_backward(dtype: jnp.dtype, saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, x_like, kernel_like = saved
    rows, g = x.reshape(-1, x.shape[-1]), g.astype(dtype).reshape(-1, g.shape[-1])
    dx = dot("io,mo->im", kernel, g, dtype).T  # twice as fast on the CPU as "mo,io->mi"

    def plain(rows: jax.Array, g: jax.Array) -> jax.Array:
        return dot("mi,mo->io", rows, g, dtype)

    def turned(rows: jax.Array, g: jax.Array) -> jax.Array:
        return dot("im,mo->io", transposed(rows), g, dtype)

    # (in float32 the dot alone would gain as well, a step loses 5 %)
    dkernel = plain(rows, g) if dtype == jnp.float32 else jax.lax.platform_dependent(rows, g, cpu=turned, default=plain)
    return dx.reshape(x.shape).astype(x_like.dtype), dkernel.astype(kernel_like.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def matmul_4bit(x: jax.Array, codes: jax.Array, scales: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`matmul` by a frozen kernel that is kept in 4 bits (see `ftjax.models.nf4`); it gets no gradient.

    The backward pass takes the kernel out of its 4 bits a second time.
    """
    return matmul(x, nf4.dequantize(nf4.after(x, codes), scales), dtype)


def _matmul_4bit_forward(x: jax.Array, codes: jax.Array, scales: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, Any]:
    return matmul_4bit(x, codes, scales, dtype), (codes, scales, jnp.zeros((0,), x.dtype))


def _matmul_4bit_backward(dtype: jnp.dtype, saved: Any, g: jax.Array) -> tuple[jax.Array, None, None]:
    codes, scales, like = saved
    dx = dot("io,...o->...i", nf4.dequantize(nf4.after(g, codes), scales), g, dtype)
    return dx.astype(like.dtype), None, None


matmul_4bit.defvjp(_matmul_4bit_forward, _matmul_4bit_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def products(query: jax.Array, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Of queries with keys: (batch, queries, heads, head_size), (batch, keys, heads, head_size) to float32 (batch, heads,
    queries, keys), as `dot` has them. On a CPU the backward pass is `per_head`'s.
    """
    return dot(PRODUCTS, query, key, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weighted(weights: jax.Array, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Sums of values: (batch, heads, queries, keys), (batch, keys, heads, head_size) to float32 (batch, queries, heads,
    head_size), as `dot` has them. On a CPU both passes are `per_head`'s.
    """
    operands = weights.astype(dtype), value.astype(dtype)
    return jax.lax.platform_dependent(*operands, cpu=_mixed, default=lambda a, b: dot(WEIGHTED, a, b, dtype))


PRODUCTS, WEIGHTED = "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"


def per_head(a: jax.Array, b: jax.Array, summed: tuple[int, int], heads: tuple[int, int]) -> jax.Array:
    """Of each example and head the product of two matrices: float32 (batch, heads, what a has left, what b has left).

    summed, heads: which axes of a and b are summed over and are heads. a should be small, or have the summed axis last. Then
    these are what the CPU's compiler has a fast path for, in bfloat16 too; einsum chooses by itself which operand comes first,
    and of a dot that reads a transposed array the compiler makes a float32 one (attention of 72 positions, there and back:
    two thirds of the time).
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((summed[0],), (summed[1],)), ((0, heads[0]), (0, heads[1])))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _mixed(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Σ_k weights_qk x_k: (batch, heads, q, k), (batch, k, heads, head_size) to (batch, q, heads, head_size)."""
    return per_head(weights, x, (3, 1), (1, 2)).swapaxes(1, 2)


def _turned(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Σ_q weights_qk x_q: (batch, heads, q, k), (batch, q, heads, head_size) to (batch, k, heads, head_size)."""
    return per_head(x, weights, (1, 2), (2, 1)).transpose(0, 3, 1, 2)


def _kept(dtype: jnp.dtype, a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Operands for the backward pass, and of which dtype they were."""
    return a.astype(dtype), b.astype(dtype), jnp.zeros((0,), a.dtype), jnp.zeros((0,), b.dtype)


Cotangents = tuple[jax.Array, jax.Array]


def _backward(
    spec: str, on_cpu: Callable[..., Cotangents], dtype: jnp.dtype, saved: tuple[jax.Array, ...], g: jax.Array
) -> Cotangents:
    """Cotangents of what was `_kept`: on a CPU `on_cpu` of the operands and g in the compute dtype, else what JAX derives."""
    a, b, *like = saved

    def derived(a: jax.Array, b: jax.Array, g: jax.Array) -> Cotangents:
        return in_their_dtype(jax.vjp(lambda a, b: dot(spec, a, b, dtype), a, b)[1](g))

    def spelled_out(a: jax.Array, b: jax.Array, g: jax.Array) -> Cotangents:
        return in_their_dtype(on_cpu(a, b, g.astype(dtype)))

    def in_their_dtype(found: Cotangents) -> Cotangents:
        return found[0].astype(like[0].dtype), found[1].astype(like[1].dtype)

    return jax.lax.platform_dependent(a, b, g, cpu=spelled_out, default=derived)


products.defvjp(
    lambda query, key, dtype: (products(query, key, dtype), _kept(dtype, query, key)),
    functools.partial(_backward, PRODUCTS, lambda query, key, g: (_mixed(g, key), _turned(g, query))),
)
weighted.defvjp(
    lambda weights, value, dtype: (weighted(weights, value, dtype), _kept(dtype, weights, value)),
    functools.partial(_backward, WEIGHTED, lambda weights, value, g: (per_head(g, value, (3, 3), (2, 2)), _turned(weights, g))),
)
