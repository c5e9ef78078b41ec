"""L_self(x, f(x; θ)): predicting the next token (Radford et al., 2018), without ever holding all logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import NO_LABEL, Average, Batch
from ftjax.objectives.classification import cross_entropy


def next_tokens(batch: Batch) -> jax.Array:
    """What each position is to predict, int32 (batch, length): the token after it, -100 where there is none that counts.

    None counts at the end of a row and of a segment (`segment_ids`), before padding, and where `loss_mask`, int (batch,
    length), is 0 for the token that would be predicted.
    """
    segments = batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]
    counts = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
    if "loss_mask" in batch:
        counts &= batch["loss_mask"][:, 1:] > 0
    return jnp.pad(jnp.where(counts, batch["input_ids"][:, 1:], NO_LABEL), ((0, 0), (0, 1)), constant_values=NO_LABEL)


def labeled_tokens(batch: Batch) -> Batch:
    """The batch with a `loss_mask` of the tokens that have a label: `labels`, int32 (batch, length), is -100 elsewhere."""
    return batch | {"loss_mask": (batch["labels"] >= 0).astype(jnp.int32)}


def blockwise(
    logits: Callable[[jax.Array], jax.Array], hidden: jax.Array, labels: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy and the number of right predictions, float32 scalars, in blocks of positions.

    logits: hidden states (positions, hidden) to float32 (positions, classes). hidden (..., hidden), labels int (...),
    negative where there is none. At most `block` rows of logits are held at a time: the backward pass computes them again.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    block = min(block, len(labels))
    fill = -len(labels) % block
    hidden = jnp.pad(hidden, ((0, fill), (0, 0))).reshape(-1, block, hidden.shape[-1])
    labels = jnp.pad(labels, (0, fill), constant_values=NO_LABEL).reshape(-1, block)

    @jax.checkpoint
    def one(hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = logits(hidden)
        losses, weights = cross_entropy(scores, labels)
        return losses.sum(), (weights * (scores.argmax(-1) == labels).astype(jnp.float32)).sum()

    def add(sums: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
        return jax.tree.map(jnp.add, sums, one(*part)), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), (hidden, labels))[0]


def token_scores(model: Model, params: Params, batch: Batch, block: int = 256) -> jax.Array:
    """Of every token its loss (nats) and whether it was the likeliest, float32 (batch, length, 2); 0, 0 where none counts.

    What counts is what `next_tokens` says; what a token is predicted from is before it. Deterministic. Logits of about
    `block` positions are held at a time: some columns of the batch, so that rows may lie on several devices.
    """
    module = model.bind(params)
    hidden, labels = module.hidden_states(batch)[-1], next_tokens(batch)
    rows, length = labels.shape
    width = min(max(1, block // rows), length)
    fill = -length % width

    def columns(x: jax.Array) -> jax.Array:
        """(rows, length + fill, ...) to (blocks, rows, width, ...)."""
        return x.reshape(rows, -1, width, *x.shape[2:]).swapaxes(0, 1)

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores = module.vocabulary_logits(part[0])
        losses, weights = cross_entropy(scores, part[1])
        return jnp.stack([losses, weights * (scores.argmax(-1) == part[1]).astype(jnp.float32)], axis=-1)

    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, fill)), constant_values=NO_LABEL)
    found = jax.lax.map(one, (columns(hidden), columns(labels))).swapaxes(0, 1).reshape(rows, -1, 2)[:, :length]
    return jnp.pad(found[:, :-1], ((0, 0), (1, 0), (0, 0)))


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of the next token at every position that has one; also the metric `causal_lm_accuracy`.

    The model has the head `causal_lm`. Rows may be packed (`segment_ids`); `loss_mask` chooses the tokens to learn, such
    as an assistant's. labeled: instead, those that have a label, see `labeled_tokens`. block: positions whose logits are held
    at a time; None: as many as the model says.
    """

    reads_vocabulary: ClassVar[bool] = True  # as its output matrix, where embeddings are tied

    model: Model
    block: int | None = None
    labeled: bool = False

    def __call__(self, params: Params, batch: Batch, seeds: jax.Array | None) -> tuple[Average, dict[str, Average]]:
        batch = labeled_tokens(batch) if self.labeled else batch
        module = self.model.bind(params)
        labels = next_tokens(batch)
        hidden = module.hidden_states(batch, seeds=seeds, frozen=self.model.frozen)[-1]
        block = self.block or max(256, self.model.logits_bytes // (4 * self.model.config.vocab_size) // 256 * 256)
        total, right = blockwise(module.vocabulary_head(), hidden, labels, block)
        weight = (labels >= 0).astype(jnp.float32).sum()
        return (total, weight), {"causal_lm_accuracy": (right, weight)}


LOSS = CausalLM
