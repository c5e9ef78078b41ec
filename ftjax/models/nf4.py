"""Frozen matrices in 4 bits: NormalFloat (Dettmers et al., 2023, QLoRA, https://arxiv.org/abs/2305.14314, section 3).

Sixteen levels, the quantiles of a normal distribution, stand for numbers between -1 and 1; every block of up to 64 numbers
along the input features has a scale, its largest magnitude. A kernel of n numbers takes n / 2 bytes, and n / 16 (float32)
or n / 32 (bfloat16) for its scales.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import InputError

LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""QLoRA's appendix E, as bitsandbytes has them."""
BLOCK = 64
ENDINGS = CODES, SCALES = ".kernel_codes", ".kernel_scales"
"""How the names end of the two parameters that stand for a kernel."""


def block_of(features_in: int) -> int:
    """How many numbers share a scale: 64, or as many as divide the input features."""
    return math.gcd(features_in, BLOCK)


def shapes_of(features_in: int, features_out: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(of the codes, of the scales) of a kernel."""
    return (features_in // 2, features_out), (features_in // block_of(features_in), features_out)


def check(name: str, features_in: int) -> None:
    """InputError for a kernel whose features cannot be cut into blocks worth a scale."""
    if block_of(features_in) < 8:
        raise InputError(f"--base-bits 4: {name} has {features_in} input features, which is not a multiple of 8.")


def quantize(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel, float (features_in, features_out), to (codes, scales).

    codes: uint8 (features_in / 2, features_out), row i holds the numbers of row 2 i in the lower half of a byte and of
    row 2 i + 1 in the upper one. scales: float32 (blocks, features_out), rounded to what bfloat16 can hold, so that keeping
    them in it changes nothing.
    """
    features_in, features_out = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(-1, block_of(features_in), features_out)
    scales = jnp.abs(blocks).max(1).astype(jnp.bfloat16).astype(jnp.float32)
    between = jnp.asarray((LEVELS[1:] + LEVELS[:-1]) / 2)
    codes = jnp.searchsorted(between, blocks / jnp.where(scales > 0, scales, 1.0)[:, None]).astype(jnp.uint8)
    lower, upper = jnp.moveaxis(codes.reshape(-1, 2, features_out), 1, 0)
    return lower | (upper << 4), scales


def dequantize(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Codes and scales to the kernel they stand for, float32 (features_in, features_out)."""
    features_out = codes.shape[1]
    both = jnp.stack([codes & 15, codes >> 4], axis=1).reshape(len(scales), -1, features_out)
    return (_level(both) * scales.astype(jnp.float32)[:, None]).reshape(-1, features_out)


def _level(codes: jax.Array) -> jax.Array:
    """Codes 0 to 15 to their levels: a choice between two for each bit, which vector units do faster than look-ups."""
    values = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def after(value: jax.Array, codes: jax.Array) -> jax.Array:
    """The codes, but not before the value is there: taken out of 4 bits early, all kernels would be there at once.

    Compilers drop optimization barriers before they schedule, on a CPU; no compiler knows that the value is a number.
    """
    first = jax.lax.stop_gradient(value[(0,) * value.ndim])
    return codes ^ jnp.broadcast_to((first != first).astype(codes.dtype), codes.shape)
