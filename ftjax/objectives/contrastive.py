"""L_self of sentence embeddings: dropout pairs (SimCSE) and pairs by label (SetFit).

THESE LOSSES COMPARE ROWS OF A BATCH WITH EACH OTHER, so they are the only ones that depend on how rows are batched: cut
into microbatches (gradient accumulation) or mapped over devices with pmap, a row meets those of its own part only, and
the update is not that of the whole batch. A batch spread over the devices of a mesh still is one batch: each device
compares its rows with all.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.models.dots import dot
from ftjax.models.layers import mean_pool
from ftjax.objectives import NO_LABEL, Average, Batch
from ftjax.objectives.classification import cross_entropy
from ftjax.random import fold_in
from ftjax.sharding import row_axes

Pooling = Literal["mean", "first-token"]
"""A row's embedding: the mean of its last hidden states over the attention mask, or the first one."""

FIRST_SEED, SECOND_SEED = range(2)  # an example's uses of its seed


def embeddings(model: Model, params: Params, batch: Batch, seeds: jax.Array | None, pooling: Pooling) -> jax.Array:
    """float32 (batch, hidden); with seeds the model is in training mode."""
    first = pooling == "first-token"
    hidden = model.bind(params).hidden_states(batch, seeds=seeds, frozen=model.frozen, readout=first)
    return hidden[-1][:, 0] if first else mean_pool(hidden[-1], batch["attention_mask"])


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """a·b / |a||b| of all rows of a (m, hidden) with all of b (n, hidden): float32 (m, n), 0 for a row of zeros."""

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))

    # Always float32: at temperature 0.05 an error of the cosine is 20 times as large in the logits.
    return dot("ih,jh->ij", unit(a), unit(b), jnp.dtype(jnp.float32))


def everyones(rows: jax.Array) -> jax.Array:
    """The rows (batch, ...) of all devices that a batch is spread over, in its order."""
    axes = row_axes()
    return jax.lax.all_gather(rows, axes, tiled=True) if axes else rows


def own_places(batch: int) -> jax.Array:
    """Where this device's rows stand among `everyones`, int32 (batch,)."""
    axes = row_axes()
    return jnp.arange(batch, dtype=jnp.int32) + (jax.lax.axis_index(axes) * batch if axes else 0)


def info_nce(
    similarity: jax.Array, real: jax.Array, temperature: float, places: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-log exp(s_ii / τ) / Σ_j exp(s_ij / τ) for every row i, its weight, and 1 where s_ii is the largest: float32 (rows,).

    similarity float32 (rows, batch); real bool (batch,): other rows are neither anchors (weight 0) nor negatives.
    places: int32 (rows,), which of the batch they are; None: all.
    """
    places = jnp.arange(len(real), dtype=jnp.int32) if places is None else places
    logits = jnp.where(jnp.broadcast_to(real[None, :], similarity.shape), similarity / temperature, jnp.finfo(jnp.float32).min)
    own = jnp.where(real[places], places, NO_LABEL)
    losses, weights = cross_entropy(logits, own)
    return losses, weights, weights * (logits.argmax(-1) == own).astype(jnp.float32)


def pair_regression(
    similarity: jax.Array, labels: jax.Array, places: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(s_ij - [y_i = y_j])² of every pair i < j, its weight, and 1 where s_ij > 1/2 tells equal labels: (rows, batch).

    similarity float32 (rows, batch); labels int (batch,), pairs with a negative one give 0 with weight 0.
    places: int32 (rows,), which of the batch the rows i are; None: all.
    """
    shape, places = similarity.shape, jnp.arange(len(labels), dtype=jnp.int32) if places is None else places
    y_i, y_j = jnp.broadcast_to(labels[places][:, None], shape), jnp.broadcast_to(labels[None, :], shape)
    after = places[:, None] < jnp.arange(len(labels), dtype=jnp.int32)[None, :]
    weights = (after & (y_i >= 0) & (y_j >= 0)).astype(jnp.float32)
    equal = y_i == y_j
    right = weights * ((similarity > 0.5) == equal).astype(jnp.float32)
    return weights * (similarity - equal.astype(jnp.float32)) ** 2, weights, right


@dataclasses.dataclass(frozen=True)
class DropoutPairs:
    """SimCSE without labels (Gao et al., 2021, https://arxiv.org/abs/2104.08821, equation 4): two passes over a row with
    different dropout are a pair, all other rows of the batch are its negatives; also the metric `contrastive_accuracy`.

    The paper's linear layer with tanh over the first token, used in training only, is left out. Without dropout, as in
    evaluation, both views are the same: the loss then only tells how far rows are from each other. A microbatch of one
    row has no negatives and loss 0.
    """

    model: Model
    pooling: Pooling = "mean"
    temperature: float = 0.05

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        first, second = (
            embeddings(self.model, params, batch, None if seeds is None else fold_in(seeds, view), self.pooling)
            for view in (FIRST_SEED, SECOND_SEED)
        )
        real, places = everyones(batch["example_ids"] >= 0), own_places(len(first))
        losses, weights, right = info_nce(cosine_similarity(first, everyones(second)), real, self.temperature, places)
        return (losses.sum(), weights.sum()), {"contrastive_accuracy": (right.sum(), weights.sum())}


@dataclasses.dataclass(frozen=True)
class LabelPairs:
    """SetFit's fine-tuning of the encoder (Tunstall et al., 2022, https://arxiv.org/abs/2209.11055, section 3.1): the
    cosine similarity of two rows is 1 where their labels are equal and 0 where not; also the metric `pair_accuracy`.

    SetFit draws as many equal as different pairs; here all pairs of labelled rows in the batch count once, so with
    many classes most are different ones. The weight is the number of pairs.
    """

    model: Model
    pooling: Pooling = "mean"

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        rows = embeddings(self.model, params, batch, seeds, self.pooling)
        labels = jnp.where(batch["example_ids"] >= 0, batch["labels"], NO_LABEL)
        similarity = cosine_similarity(rows, everyones(rows))
        losses, weights, right = pair_regression(similarity, everyones(labels), own_places(len(rows)))
        return (losses.sum(), weights.sum()), {"pair_accuracy": (right.sum(), weights.sum())}
