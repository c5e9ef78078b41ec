"""A coefficient λ over the run: a number, or a line from one number to another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ftjax.errors import InputError

LARGEST = float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Weight:
    """start + (end - start) · fraction: the coefficient where this fraction of the run is done."""

    start: float
    end: float

    def __call__(self, fraction: jax.Array | float) -> jax.Array:
        """Float32 scalar; fraction in [0, 1] may be traced, and what is outside is taken as the nearest end."""
        done = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
        return self.start + (self.end - self.start) * done

    @property
    def is_zero(self) -> bool:
        """Whether the term never counts, so that it can be left out."""
        return self.start == self.end == 0.0


def parse_weight(text: str, flag: str = "--self-supervised-weight") -> Weight:
    """ "0.1" (constant) or "linear:0->1" (a line over the run); InputError, naming the flag, for anything else."""
    kind, colon, ends = text.partition(":")
    parts = ends.split("->") if colon else [text, text]
    try:
        start, end = map(float, parts)
    except ValueError:
        start = end = -1.0
    if (colon and kind.strip() != "linear") or not (0.0 <= start <= LARGEST and 0.0 <= end <= LARGEST):  # nan is neither
        raise InputError(
            f"{flag} {text!r}: must be 0 or a positive number, such as 0.1, or a line over the run, such as 'linear:0->1'."
        )
    return Weight(start, end)
