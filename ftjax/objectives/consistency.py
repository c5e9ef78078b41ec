"""L_self(x, f(x; θ)): an augmented row should get the prediction of the row itself (UDA)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import Average, Batch, fixed_seeds, rows
from ftjax.objectives.augment import Augmentation
from ftjax.objectives.classification import class_logits
from ftjax.objectives.teacher import teacher_logits
from ftjax.random import fold_in

AUGMENT_SEED, MODEL_SEED = range(2)  # an example's uses of its seed


def sharpened_divergence(clean: jax.Array, augmented: jax.Array, temperature: float) -> jax.Array:
    """KL(p || q) = Σ p log(p / q) with p = softmax(clean / τ), which gets no gradient, and q = softmax(augmented).

    clean, augmented: float32 logits (..., classes); float32 (...) comes back.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(clean) / temperature, axis=-1)
    log_q = jax.nn.log_softmax(augmented, axis=-1)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def confident(logits: jax.Array, threshold: float) -> jax.Array:
    """1 where the largest probability of softmax(logits) is at least the threshold: float32 (...) from (..., classes)."""
    return (jax.nn.softmax(logits, axis=-1).max(-1) >= threshold).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Consistency:
    """UDA's KL divergence (Xie et al., 2020, https://arxiv.org/abs/1904.12848, section 2) between a row and its
    augmentation, on rows without a label or on all; also the metric `consistency_confident`, the share that counted.

    Rows whose prediction is less sure than `threshold` (before sharpening) give 0 but keep their weight, as in the
    authors' code: few sure rows make a small loss, not a few loud ones. 0 lets every row count.
    temperature: below 1 sharpens; the default and no threshold are the authors' for BERT on IMDb.

    Unlike theirs, the prediction on the row itself is made without dropout: it is a target, and needs no noise. Without
    seeds (evaluation) the augmentations are those of a fixed seed an example. With `augment.Identity` only dropout
    tells the two apart.
    """

    model: Model
    augment: Augmentation
    temperature: float = 0.85
    threshold: float = 0.0
    all_rows: bool = False

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        augmented = self.augment(batch, fold_in(fixed_seeds(batch) if seeds is None else seeds, AUGMENT_SEED))
        target = teacher_logits(self.model, params, batch)
        logits = class_logits(self.model, params, augmented, None if seeds is None else fold_in(seeds, MODEL_SEED))
        weights = rows(batch, all_rows=self.all_rows)
        sure = weights * confident(target, self.threshold)
        losses = sure * sharpened_divergence(target, logits, self.temperature)
        return (losses.sum(), weights.sum()), {"consistency_confident": (sure.sum(), weights.sum())}
