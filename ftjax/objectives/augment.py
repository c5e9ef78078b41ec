"""Augmentations without a model: another view of a row that means nearly the same.

Deletion of tokens and of spans, as in CLEAR (Wu et al., 2020, https://arxiv.org/abs/2012.15466); deletion and swap as
in EDA (Wei & Zou, 2019, https://arxiv.org/abs/1901.11196), whose swap takes any two words, here two neighbours.

Each takes a batch and seeds, uint32 (batch,), and gives a batch of the same shapes with other input_ids, and where
tokens go, other attention_mask and token_type_ids. What happens to a row depends on its seed and its tokens alone, not
on its padding or its place in the batch. Special tokens, padding and what stands around every text (`template`, see `content`)
are left alone, and a row that has any other token keeps at least one. A row is taken to be padded on the right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftjax.objectives import Batch
from ftjax.random import bits, fold_in, uniform

Augmentation = Callable[[Batch, jax.Array], Batch]
"""(batch, seeds) -> batch of the same shapes. Hashable, as everything in an objective is."""

PARITY_SEED, SWAP_SEED = range(2)  # an example's uses of its seed


def content(batch: Batch, special_ids: tuple[int, ...], template: tuple[int, int] = (0, 0)) -> jax.Array:
    """Which tokens are text, neither padding nor special: bool (batch, length).

    template: how many tokens at the beginning and at the end of every row are no text but what stands around it.
    """
    mask = batch["attention_mask"]
    found = mask > 0
    if template != (0, 0):
        (before, after), place = template, jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
        found &= (place >= before) & (place < mask.sum(-1, keepdims=True, dtype=jnp.int32) - after)
    for special in special_ids:
        found &= batch["input_ids"] != special
    return found


def compact(batch: Batch, keep: jax.Array, pad_token_id: int) -> Batch:
    """Only the tokens of `keep`, bool (batch, length), in their order from the left; the rest becomes padding."""
    order = jnp.argsort(~keep, axis=-1, stable=True)
    left = jnp.arange(keep.shape[1])[None, :] < keep.sum(-1)[:, None]

    def move(x: jax.Array, fill: int) -> jax.Array:
        return jnp.where(left, jnp.take_along_axis(x, order, axis=1), fill)

    return {
        **batch,
        "input_ids": move(batch["input_ids"], pad_token_id),
        "attention_mask": left.astype(batch["attention_mask"].dtype),
        "token_type_ids": move(batch["token_type_ids"], 0),
    }


def dropped_tokens(text: jax.Array, seeds: jax.Array, probability: float) -> jax.Array:
    """Each token of `text`, bool (batch, length), with this probability, but never all of a row: bool (batch, length)."""
    u = uniform(seeds, text.shape[1:])
    largest = jnp.where(text, u, -1.0).max(-1, keepdims=True)
    return text & (u < probability) & (u < largest)


def deleted_span(text: jax.Array, seeds: jax.Array, probability: float) -> jax.Array:
    """round(probability · tokens) neighbouring tokens of `text`, but never all of a row: bool (batch, length).

    Neighbouring once special tokens are left out: a span may go on behind a separator, which stays.
    """
    number = text.sum(-1)
    size = jnp.round(number.astype(jnp.float32) * probability).astype(jnp.int32)
    size = jnp.clip(size, 0, jnp.maximum(number - 1, 0))
    start = (uniform(seeds, (1,))[:, 0] * (number - size + 1).astype(jnp.float32)).astype(jnp.int32)
    index = jnp.cumsum(text, -1) - 1
    return text & (index >= start[:, None]) & (index < (start + size)[:, None])


def swapped_neighbours(text: jax.Array, seeds: jax.Array, probability: float) -> jax.Array:
    """Where each position's token comes from when neighbouring tokens of `text` swap places: int32 (batch, length).

    Each row is cut into pairs, from its first or its second position on, by chance; a pair in `text` swaps with this
    probability. So every token moves at most one place, and about with this probability.
    """
    length = text.shape[1]
    here = jnp.broadcast_to(jnp.arange(length), text.shape)
    odd = (bits(fold_in(seeds, PARITY_SEED), (1,)) >> 31).astype(jnp.int32)
    partner = jnp.clip(((here + odd) ^ 1) - odd, 0, length - 1)  # at the ends a token may be its own
    both = text & jnp.take_along_axis(text, partner, axis=1)
    u = jnp.take_along_axis(uniform(fold_in(seeds, SWAP_SEED), (length,)), jnp.minimum(here, partner), axis=1)
    return jnp.where(both & (u < probability), partner, here)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The row as it is: two views then differ by the model's dropout only."""

    def __call__(self, batch: Batch, seeds: jax.Array) -> Batch:
        return batch


@dataclasses.dataclass(frozen=True)
class TokenDropout:
    """Remove each token with a probability, or with `mask_token_id` put the mask token in its place."""

    special_ids: tuple[int, ...]
    probability: float = 0.1
    mask_token_id: int | None = None
    pad_token_id: int = 0
    template: tuple[int, int] = (0, 0)

    def __call__(self, batch: Batch, seeds: jax.Array) -> Batch:
        dropped = dropped_tokens(content(batch, self.special_ids, self.template), seeds, self.probability)
        if self.mask_token_id is None:
            return compact(batch, (batch["attention_mask"] > 0) & ~dropped, self.pad_token_id)
        return {**batch, "input_ids": jnp.where(dropped, self.mask_token_id, batch["input_ids"])}


@dataclasses.dataclass(frozen=True)
class SpanDeletion:
    """Remove one span of about `probability` of the tokens."""

    special_ids: tuple[int, ...]
    probability: float = 0.15
    pad_token_id: int = 0
    template: tuple[int, int] = (0, 0)

    def __call__(self, batch: Batch, seeds: jax.Array) -> Batch:
        deleted = deleted_span(content(batch, self.special_ids, self.template), seeds, self.probability)
        return compact(batch, (batch["attention_mask"] > 0) & ~deleted, self.pad_token_id)


@dataclasses.dataclass(frozen=True)
class WordSwap:
    """Swap neighbouring tokens; about `probability` of them move, by one place. Token types stay in their places."""

    special_ids: tuple[int, ...]
    probability: float = 0.1
    template: tuple[int, int] = (0, 0)

    def __call__(self, batch: Batch, seeds: jax.Array) -> Batch:
        source = swapped_neighbours(content(batch, self.special_ids, self.template), seeds, self.probability)
        return {**batch, "input_ids": jnp.take_along_axis(batch["input_ids"], source, axis=1)}
