"""L(y, f(x; θ)) where y is a number: the squared error."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch
from ftjax.objectives.classification import class_logits


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared difference of the head's one output and `batch["labels"]`, float32 (batch,), NaN where a row has none."""

    takes_prefix: ClassVar[bool] = True

    model: Model

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        found, labels = class_logits(self.model, params, batch, seeds)[..., 0], batch["labels"]
        known = ~jnp.isnan(labels)
        errors = jnp.where(known, found - jnp.where(known, labels, 0.0), 0.0)
        return ((errors * errors).sum(), known.astype(jnp.float32).sum()), {}
