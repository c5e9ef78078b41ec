"""L_self(x, f(x; θ)): masked language modelling (Devlin et al., 2019, section 3.1), which needs no label."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import NO_LABEL, Average, Batch
from ftjax.objectives.classification import cross_entropy
from ftjax.random import fold_in, uniform

CHOOSE_SEED, REPLACE_SEED, TOKEN_SEED, MODEL_SEED = range(4)  # an example's uses of its seed


class Masked(NamedTuple):
    """A masked batch: input_ids (batch, length); positions and labels (batch, most), labels -100 where unused."""

    input_ids: jax.Array
    positions: jax.Array
    labels: jax.Array


def mask_tokens(
    input_ids: jax.Array,
    maskable: jax.Array,
    seeds: jax.Array,
    *,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
) -> Masked:
    """Choose tokens to predict: round(probability · maskable tokens) of each row, at least 1 where there is any.

    Of the chosen 80 % become the mask token, 10 % a random token and 10 % stay. input_ids int32 and maskable bool are
    (batch, length), seeds uint32 (batch,). The choice depends on an example's seed and tokens, not on its padding.
    A fixed number per row, `most` = ceil(probability · length), keeps shapes static, so that only these positions
    need meet the vocabulary matrix.
    """
    length = input_ids.shape[1]
    most = max(1, -int(-probability * length // 1))
    scores = jnp.where(maskable, uniform(fold_in(seeds, CHOOSE_SEED), (length,)), 2.0)
    _, positions = jax.lax.top_k(-scores, most)
    number = maskable.sum(-1)
    wanted = jnp.where(number > 0, jnp.maximum(1.0, jnp.round(number.astype(jnp.float32) * probability)), 0.0)
    chosen = jnp.arange(most, dtype=jnp.float32)[None, :] < wanted[:, None]

    original = jnp.take_along_axis(input_ids, positions, axis=1)
    u = jnp.take_along_axis(uniform(fold_in(seeds, REPLACE_SEED), (length,)), positions, axis=1)
    token = uniform(fold_in(seeds, TOKEN_SEED), (length,)) * vocab_size
    token = jnp.take_along_axis(token.astype(input_ids.dtype), positions, axis=1)
    replaced = jnp.where(u < 0.8, mask_token_id, jnp.where(u < 0.9, token, original))
    rows = jnp.arange(len(input_ids))[:, None]
    masked = input_ids.at[rows, positions].set(jnp.where(chosen, replaced, original))
    return Masked(masked, positions, jnp.where(chosen, original, NO_LABEL))


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of the masked tokens, masked anew at every step; also the metric `masked_lm_accuracy`.

    special_ids are never masked. Without seeds (evaluation) the masks are those of a fixed seed an example.
    """

    model: Model
    mask_token_id: int
    special_ids: tuple[int, ...]
    probability: float = 0.15

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        maskable = batch["attention_mask"] > 0
        for special in self.special_ids:
            maskable &= batch["input_ids"] != special
        masked = mask_tokens(
            batch["input_ids"],
            maskable,
            batch["example_ids"].astype(jnp.uint32) if seeds is None else seeds,
            mask_token_id=self.mask_token_id,
            vocab_size=self.model.config.vocab_size,
            probability=self.probability,
        )
        module = self.model.bind(params)
        hidden = module.hidden_states(
            {**batch, "input_ids": masked.input_ids},
            seeds=None if seeds is None else fold_in(seeds, MODEL_SEED),
            frozen=self.model.frozen,
        )
        logits = module.vocabulary_logits(jnp.take_along_axis(hidden[-1], masked.positions[..., None], axis=1))
        losses, weights = cross_entropy(logits, masked.labels)
        right = weights * (logits.argmax(-1) == masked.labels).astype(jnp.float32)
        return (losses.sum(), weights.sum()), {"masked_lm_accuracy": (right.sum(), weights.sum())}
