"""L_self(x, f(x; θ)): predicting the next token (Radford et al., 2018), without ever holding all logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ftjax.models import Model, Params
from ftjax.objectives import NO_LABEL, Average, Batch
from ftjax.objectives.classification import cross_entropy

Arrays = list[jax.Array]
Sums = tuple[jax.Array, jax.Array]
"""Summed cross-entropy, and how many predictions are right: float32 scalars."""


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


def token_sums(scores: jax.Array, labels: jax.Array) -> Sums:
    """Summed `cross_entropy` and the number of right predictions of logits (positions, classes), float32.

    Right is what is likelier than any other class. Both need the largest of the others alone, in one pass over the logits;
    the largest of all, and an argmax, would be one each.
    """
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=-1)
    mine = jnp.arange(scores.shape[1])[None] == labels[:, None]
    others = jax.lax.stop_gradient(jnp.where(mine, -jnp.inf, scores).max(-1, keepdims=True))
    most = jax.lax.stop_gradient(jnp.maximum(own, others))
    losses = jnp.log(jnp.exp(scores - most).sum(-1, keepdims=True)) + most - own
    weights = (labels >= 0).astype(jnp.float32)[:, None]
    return (weights * losses).sum(), (weights * (own > others).astype(jnp.float32)).sum()


def blockwise(logits: Callable[[jax.Array], jax.Array], hidden: jax.Array, labels: jax.Array, block: int) -> Sums:
    """Summed cross-entropy and the number of right predictions, float32 scalars, in blocks of positions.

    logits: hidden states (positions, hidden) to float32 (positions, classes). hidden (..., hidden), labels int (...),
    negative where there is none. At most `block` rows of logits are held at a time.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    block = min(block, len(labels))
    fill = -len(labels) % block
    hidden = jnp.pad(hidden, ((0, fill), (0, 0))).reshape(-1, block, hidden.shape[-1])
    labels = jnp.pad(labels, (0, fill), constant_values=NO_LABEL).reshape(-1, block)
    logits, read = jax.closure_convert(logits, hidden[0])
    return _sums(logits, read, hidden, labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(logits: Callable[..., jax.Array], read: Arrays, hidden: jax.Array, labels: jax.Array) -> Sums:
    """Of blocks (blocks, block, hidden) and (blocks, block). read: the arrays that `logits` reads besides."""

    def add(sums: Sums, part: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, token_sums(logits(part[0], *read), part[1])), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), (hidden, labels))[0]


def _sums_forward(logits: Callable[..., jax.Array], read: Arrays, hidden: jax.Array, labels: jax.Array) -> Any:
    """A block's gradients are taken while its logits are there: they need not be computed again (as in Liger, Hsu et al., 2024,
    https://arxiv.org/abs/2410.10989). They are those of the sum: the backward pass knows what that is multiplied by."""

    def add(carry: tuple[Sums, Arrays], part: tuple[jax.Array, jax.Array]) -> tuple[tuple[Sums, Arrays], jax.Array]:
        def total(read: Arrays, hidden: jax.Array) -> Sums:
            return token_sums(logits(hidden, *read), part[1])

        loss, gradient, right = jax.vjp(total, read, part[0], has_aux=True)
        of_read, of_hidden = gradient(jnp.ones(()))
        return jax.tree.map(jnp.add, carry, ((loss, right), of_read)), of_hidden

    start = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, read))
    (sums, of_read), of_hidden = jax.lax.scan(add, start, (hidden, labels))
    return sums, (of_read, of_hidden)


def _sums_backward(logits: Callable[..., jax.Array], gradients: Any, given: Sums) -> tuple[Arrays, jax.Array, None]:
    of_read, of_hidden = jax.tree.map(lambda x: x * given[0].astype(x.dtype), gradients)
    return of_read, of_hidden, None


_sums.defvjp(_sums_forward, _sums_backward)


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
