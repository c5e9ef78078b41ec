"""A coefficient λ over the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftjax.weight import Weight

Schedule = Callable[[jax.Array], jax.Array]
"""The step's number, int32 scalar -> the coefficient in that step, float32 scalar."""


@dataclasses.dataclass(frozen=True)
class Line:
    """start + (end - start) · step / steps, and `end` from there on."""

    start: float
    end: float
    steps: int

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Float32 scalar; step may be traced."""
        done = jnp.clip(jnp.asarray(step, jnp.float32) / max(self.steps, 1), 0.0, 1.0)
        return self.start + (self.end - self.start) * done


def over(weight: Weight, steps: int) -> float | Schedule:
    """The coefficient of a run of so many steps."""
    return weight.start if weight.start == weight.end else Line(weight.start, weight.end, steps)
