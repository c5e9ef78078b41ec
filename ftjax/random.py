"""Random bits that belong to an example, not to its place in a batch.

Every example gets a 32-bit seed from (key, step, example id); every random decision about it (a dropout mask, which
tokens are masked) is a hash of that seed and a counter. So the same example sees the same masks however the batch is
split into microbatches or spread over devices, and no device ever makes bits for another one's rows. (Dropout on
attention weights, (heads, length, length), also depends on the length of the bucket, since the counter does.)

The hash also is far cheaper than a cryptographic generator: a few integer operations an element, fused by XLA into
the operation that uses them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the whole range (Knuth, TAOCP 3, 6.4)


def mix(bits: jax.Array) -> jax.Array:
    """Scramble uint32 so that every input bit flips every output bit with probability close to 1/2.

    A bijection on 32-bit integers: two rounds of xor-shift and multiply with constants found by exhaustive search
    (Chris Wellons, "Prospecting for hash functions", lowbias32). Shape and dtype (uint32) are kept.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x735A2D97)
    return bits ^ (bits >> 15)


def example_seeds(key: jax.Array, example_ids: jax.Array) -> jax.Array:
    """One seed an example: uint32 (batch,) from a key of this step and example_ids (batch,), any integer dtype."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), dtype=jnp.uint32))(example_ids)


def fold_in(seeds: jax.Array, data: int | jax.Array) -> jax.Array:
    """Derive new seeds for another use, as `jax.random.fold_in` does for keys: uint32 (batch,) to uint32 (batch,).

    data: tells the uses apart; int32 (), counted by a loop, gives the same seeds as the number it stands for.
    """
    if isinstance(data, int):
        return mix(seeds + jnp.uint32((GOLDEN * (data + 1)) & 0xFFFFFFFF))
    return mix(seeds + jnp.uint32(GOLDEN) * (data.astype(jnp.uint32) + jnp.uint32(1)))


def bits(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 (batch, *shape): element c of an example is a hash of (its seed, c), c counting in row-major order."""
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    return mix(counter * jnp.uint32(GOLDEN) ^ seeds.reshape(-1, *(1,) * len(shape)))


def uniform(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random float32 in [0, 1), (batch, *shape), with 24 random bits each."""
    return (bits(seeds, shape) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def dropout(x: jax.Array, rate: float, seeds: jax.Array | None) -> jax.Array:
    """Zero each element of x (batch, ...) with probability `rate` and scale the rest by 1 / (1 - rate).

    `seeds` is uint32 (batch,); None means no dropout (evaluation). Srivastava et al., 2014.
    """
    if seeds is None or rate == 0.0:
        return x
    keep = bits(seeds, x.shape[1:]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1.0 - rate), 0.0)
