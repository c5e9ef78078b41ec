"""What training minimises: terms, each a pure function returning (sum, weight), joined by coefficients.

    L(θ) = Σ_terms coefficient · sum / weight        e.g.  L + λ · L_self

A term never divides: sums and weights add up over microbatches and devices, and `ftjax.step` divides once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.models import Params
from ftjax.objectives.schedule import Schedule
from ftjax.random import example_seeds, fold_in

Batch = dict[str, jax.Array]
"""input_ids, attention_mask, token_type_ids: int32 (batch, length); labels: what the task's loss takes, int32 (batch, ...),
-100 where there is none, or float32 (batch, ...), NaN where there is none; example_ids: int32 (batch,), which example of the
data set a row is (-1: a row that only fills the batch).
Where examples share rows (see `ftjax.data.packing`): `segment_ids`, int32 (batch, length), 1, 2, ... for the examples of a row
and 0 for padding; `example_ids`, int32 (batch, examples), but (batch,) where documents are to be continued; and unless tokens
have the labels, `labels`, (batch, examples, ...), and `reads`, int32 (batch, examples), where the examples begin.
`prefix`, float32 (batch, length or 1, hidden), takes the place of the tokens where the output of the model's frozen layers
is known already (see `ftjax.prefix`). `teacher_scores`, float32 (batch, classes): probabilities that another model gives."""

Average = tuple[jax.Array, jax.Array]
"""(sum, weight), float32 scalars; the average is sum / weight once everything has been added up."""

Loss = Callable[[Params, Batch, jax.Array | None], tuple[Average, dict[str, Average]]]
"""(params, batch, seeds) -> ((sum, weight), metrics). seeds: uint32 (batch,), or None for a deterministic model."""

NO_LABEL = -100
"""The label of a row or position that has none, as everywhere in the field."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: its name in logs, its coefficient (or that by step) and its loss."""

    name: str
    coefficient: float | Schedule
    loss: Loss

    def coefficient_at(self, step: jax.Array) -> jax.Array | float:
        """The coefficient in a step, whose number is an int32 scalar."""
        return self.coefficient(step) if callable(self.coefficient) else self.coefficient


Objective = tuple[Term, ...]


def measure(
    objective: Objective, params: Params, batch: Batch, key: jax.Array | None
) -> tuple[dict[str, Average], dict[str, Average]]:
    """Every term's (sum, weight) and all metrics on a batch. With a key the model is in training mode, else not.

    Each term gets seeds of its own, so that two forward passes over an example do not share dropout masks.
    """
    ids = batch["example_ids"]
    seeds = None if key is None else example_seeds(key, ids if ids.ndim == 1 else ids[:, 0])  # a row, by its first example
    losses: dict[str, Average] = {}
    metrics: dict[str, Average] = {}
    for number, term in enumerate(objective):
        losses[term.name], more = term.loss(params, batch, None if seeds is None else fold_in(seeds, number))
        metrics |= more
    return losses, metrics


def rows(batch: Batch, *, all_rows: bool = False) -> jax.Array:
    """Which rows a term without labels is about, float32 (batch,): 1 for those without a label, or for all; 0 for filler."""
    real = batch["example_ids"] >= 0
    return (real & (all_rows | ~has_label(batch["labels"]))).astype(jnp.float32)


def has_label(labels: Any) -> Any:
    """Which rows have a label, bool (batch,), of labels (batch, ...) as NumPy or JAX has them: any that is one will do."""
    given = labels == labels if np.issubdtype(labels.dtype, np.floating) else labels >= 0  # NaN differs from itself
    return given if labels.ndim == 1 else given.reshape(len(labels), -1).any(-1)


def fixed_seeds(batch: Batch) -> jax.Array:
    """Seeds of the examples alone, the same at every step and in every run: uint32 (batch,)."""
    return batch["example_ids"].astype(jnp.uint32)


def average(pair: Average) -> jax.Array:
    """sum / weight, and 0 where nothing carried weight."""
    total, weight = pair
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)
