"""L(y, f(x; θ)) where y is a span of the text: cross-entropy of where it begins and of where it ends."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch
from ftjax.objectives.classification import class_logits, cross_entropy


def span_logits(model: Model, params: Params, batch: Batch, seeds: jax.Array | None) -> jax.Array:
    """float32 (batch, 2, length), for the first and the last token of the span; padding has the lowest float32."""
    logits = class_logits(model, params, batch, seeds).swapaxes(1, 2)
    seen = jnp.broadcast_to(batch["attention_mask"][:, None] > 0, logits.shape)
    return jnp.where(seen, logits, jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Span:
    """Cross-entropy of the first and of the last token of `batch["labels"]`, int32 (batch, 2), -100 where a row has none
    (Devlin et al., 2019, section 4.2); also the metric `span_accuracy`, of both together.
    """

    takes_prefix: ClassVar[bool] = True

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        logits, labels = span_logits(self.model, params, batch, seeds), batch["labels"]
        losses, weights = cross_entropy(logits, labels)
        both = weights[:, 0] * (logits.argmax(-1) == labels).all(-1).astype(jnp.float32)
        return (losses.sum(), weights.sum()), {"span_accuracy": (both.sum(), weights[:, 0].sum())}
