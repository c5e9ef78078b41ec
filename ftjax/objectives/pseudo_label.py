"""L_self(x, f(x; θ)): the class predicted for a weakly augmented row is the label of the strongly augmented one (FixMatch)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import NO_LABEL, Average, Batch, fixed_seeds, rows
from ftjax.objectives.augment import Augmentation, Identity
from ftjax.objectives.classification import class_logits, cross_entropy
from ftjax.objectives.consistency import confident
from ftjax.objectives.teacher import teacher_logits
from ftjax.random import fold_in

WEAK_SEED, STRONG_SEED, MODEL_SEED = range(3)  # an example's uses of its seed


def pseudo_labels(logits: jax.Array, threshold: float) -> jax.Array:
    """argmax of logits float32 (..., classes) where its probability is at least the threshold, else -100: int32 (...)."""
    return jnp.where(confident(logits, threshold) > 0, logits.argmax(-1).astype(jnp.int32), NO_LABEL)


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    """FixMatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685, equation 4) on rows without a label or on all; also
    the metric `pseudo_label_confident`, the share that counted.

    Rows below the threshold give 0 but keep their weight, as in the paper. The teacher is the student without gradient
    and without dropout, or a mean teacher where `params` holds one, see `ftjax.objectives.teacher`. Without seeds
    (evaluation) the augmentations are those of a fixed seed an example.
    """

    model: Model
    strong: Augmentation
    weak: Augmentation = dataclasses.field(default_factory=Identity)
    threshold: float = 0.95
    all_rows: bool = False

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        uses = fixed_seeds(batch) if seeds is None else seeds
        weak, strong = self.weak(batch, fold_in(uses, WEAK_SEED)), self.strong(batch, fold_in(uses, STRONG_SEED))
        weights = rows(batch, all_rows=self.all_rows)
        labels = pseudo_labels(teacher_logits(self.model, params, weak), self.threshold)
        labels = jnp.where(weights > 0, labels, NO_LABEL)
        logits = class_logits(self.model, params, strong, None if seeds is None else fold_in(seeds, MODEL_SEED))
        losses, sure = cross_entropy(logits, labels)
        return (losses.sum(), weights.sum()), {"pseudo_label_confident": (sure.sum(), weights.sum())}
