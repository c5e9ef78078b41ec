"""L(y, f(x; θ)): cross-entropy over class names."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[label] and its weight, both float32 (...): 1 where label >= 0, else 0.

    logits float (..., classes), labels int (...); rows without a label (negative) give 0 with weight 0.
    """
    weight = (labels >= 0).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return weight * (jax.nn.logsumexp(logits, axis=-1) - chosen), weight


def class_logits(model: Model, params: Params, batch: Batch, seeds: jax.Array | None) -> jax.Array:
    """float32 (batch, classes); with seeds the model is in training mode.

    (batch, length, classes) of a head for tokens, and (batch, examples, classes) where examples share rows.
    """
    module = model.bind(params)
    hidden = module.hidden_states(batch, seeds=seeds, frozen=model.frozen, readout=True)
    return module.classify(hidden[-1], seeds=seeds, every="reads" in batch)


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy of the classification head on `batch["labels"]`, of rows or of tokens; also the metric `accuracy`."""

    takes_prefix: ClassVar[bool] = True  # reads nothing of the tokens but what the model's layers make of them

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        logits = class_logits(self.model, params, batch, seeds)
        losses, weights = cross_entropy(logits, batch["labels"])
        right = weights * (logits.argmax(-1) == batch["labels"]).astype(jnp.float32)
        return (losses.sum(), weights.sum()), {"accuracy": (right.sum(), weights.sum())}
