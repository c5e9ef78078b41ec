"""L_self(x, f(x; θ)): predictions on rows without a label should be sure (entropy minimisation)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch, rows
from ftjax.objectives.classification import class_logits


def entropy(logits: jax.Array) -> jax.Array:
    """H(p) = -Σ p log p in nats with p = softmax(logits): float32 (...) from (..., classes)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -(jnp.exp(log_p) * log_p).sum(-1)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Entropy of the class prediction on rows without a label (Grandvalet & Bengio, 2004, Semi-supervised Learning by
    Entropy Minimization). Both the target and the prediction move: alone it is smallest when all rows get one class.
    """

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        weights = rows(batch)
        losses = weights * entropy(class_logits(self.model, params, batch, seeds))
        return (losses.sum(), weights.sum()), {}


LOSS = Entropy
