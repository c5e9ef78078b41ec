"""L(y, f(x; θ)) where y is a set of classes: for each class the binary cross-entropy of whether it is in the set."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch
from ftjax.objectives.classification import class_logits


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-[y log σ(z) + (1 - y) log(1 - σ(z))] with z logits float (...), y labels 0 or 1 (...): float32 (...)."""
    return jax.nn.softplus(logits) - labels.astype(jnp.float32) * logits


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Mean binary cross-entropy over the classes, each row of weight 1. `batch["labels"]`: int32 (batch, classes), 1 for the
    classes that a row is of and 0 for the others; -100 for all where it has no label. Also the metric `accuracy`, of whether
    a class is in the set.
    """

    takes_prefix: ClassVar[bool] = True

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        logits, labels = class_logits(self.model, params, batch, seeds), batch["labels"]
        weights = (labels >= 0).any(-1).astype(jnp.float32)
        losses = weights * binary_cross_entropy(logits, jnp.maximum(labels, 0)).mean(-1)
        right = weights * ((logits > 0) == (labels > 0)).astype(jnp.float32).mean(-1)
        return (losses.sum(), weights.sum()), {"accuracy": (right.sum(), weights.sum())}
