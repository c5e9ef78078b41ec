"""Rotary positions (Su et al., 2021, https://arxiv.org/abs/2104.09864): queries and keys turn with their position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import InputError

KINDS = ("default", "linear", "llama3")
NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of the angles, float32 (batch, length, head size / 2) each."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """How fast pairs of features turn; names are those of config.json's `rope_parameters`.

    linear: all `factor` times slower. llama3: only the slow ones, those that turn less than low_freq_factor times over
    the length of pretraining, and those up to high_freq_factor times in part (Llama 3.1).
    """

    rope_theta: float = 10_000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str, parameters: Any = None, theta: float = 10_000.0) -> Self:
        """From a config.json's dictionary: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

        parameters: takes the place of those two entries. theta: where the dictionary gives none.
        Raises InputError for what is not supported and would change the result.
        """
        given = parameters or config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{source}: rope_parameters is {given!r}, not a dictionary.")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in KINDS:
            raise InputError(f"{source}: rope type {kind!r} is not supported; supported are: {', '.join(KINDS)}.")
        if unknown := sorted(set(given) - {*NUMBERS, "rope_type", "type", "partial_rotary_factor"}):
            raise InputError(f"{source}: rope parameter {unknown[0]!r} is not supported.")
        if given.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1, 1.0):
            raise InputError(f"{source}: partial_rotary_factor is not supported; only 1 is.")
        trained = config.get("original_max_position_embeddings", config.get("max_position_embeddings", 8192))
        values = {"rope_theta": config.get("rope_theta") or theta, "original_max_position_embeddings": trained, **given}
        needed = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}[kind]
        if missing := [name for name in needed if name not in values]:
            raise InputError(f"{source}: rope type {kind!r} needs {missing[0]}.")
        numbers = {name: values[name] for name in NUMBERS if name in values}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{source}: {name} is {value!r}, not a positive number.")
        self = cls(rope_type=kind, **{name: float(value) for name, value in numbers.items()})
        if kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise InputError(f"{source}: high_freq_factor must be above low_freq_factor.")
        return self

    def frequencies(self, size: int) -> np.ndarray:
        """Radians a position of each pair of a head's features, float32 (size / 2,)."""
        found = self.rope_theta ** -(np.arange(0, size, 2) / size)
        if self.rope_type == "linear":
            found = found / self.factor
        if self.rope_type == "llama3":
            turns = self.original_max_position_embeddings * found / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = np.clip(kept, 0.0, 1.0)
            found = kept * found + (1 - kept) * found / self.factor
        return found.astype(np.float32)

    def rotation(self, positions: jax.Array, size: int) -> Rotation:
        """Of positions, int32 (batch, length), for heads of this size."""
        angles = positions[..., None].astype(jnp.float32) * self.frequencies(size)[None, None]
        return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turn each pair (i, i + size / 2) of the features of x, (batch, length, heads, size), in float32; the dtype stays.

    Backwards gradients turn back, by the same angles.
    """
    cos, sin = (part[:, :, None].astype(jnp.float32) for part in rotation)
    if x.dtype != jnp.bfloat16:
        return _by_halves(x, cos, sin)
    return jax.lax.platform_dependent(x, cos, sin, tpu=_by_product, default=_by_halves)


def _by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """A matrix product swaps the halves, exactly. A TPU has 128 numbers side by side, and halves of 32 would leave most of that
    empty: of heads of 64 this takes a third of the time, predicted for v5e."""
    size = x.shape[-1]
    swap = jnp.asarray(np.roll(np.eye(size), size // 2, axis=0), x.dtype)
    swapped = jnp.einsum("...i,ij->...j", x, swap, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def _back(rotation: Rotation, gradient: jax.Array) -> tuple[jax.Array, None]:
    return rotate(gradient, (rotation[0], -rotation[1])), None


rotate.defvjp(lambda x, rotation: (rotate(x, rotation), rotation), _back)
