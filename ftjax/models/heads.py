"""What stands on a body: pooler, classifiers and language-modelling heads, and the model they make."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.body import OF_TOKENS, Body, Classifier, Cloze, Config
from ftjax.models.decoder import Decoder, NextTokenHead
from ftjax.models.dots import dot
from ftjax.models.layers import ACTIVATIONS, ATTENTION, DENSE, Dense, LayerNorm, mean_pool, positions_at, segment_masks
from ftjax.random import dropout, fold_in
from ftjax.stacked import Stacks
from ftjax.zero import all_but_gathered

Remat = Literal["none", "dots", "full"]

BODY_SEED, POOLED_SEED, UNPOOLED_SEED = range(3)  # what `ftjax.random.fold_in` tells an example's uses of its seed apart by


def leading(frozen: tuple[bool, ...]) -> int:
    """How many layers have nothing but frozen stages before and in them; `frozen` lists the embeddings, then the layers."""
    stages = next((i for i, off in enumerate(frozen) if not off), len(frozen))
    return max(stages - 1, 0)


class MaskedLMHead(nnx.Module):
    """Hidden states (..., hidden) to float32 logits (..., vocabulary), with the word embeddings as the output matrix."""

    def __init__(self, config: Config, dtype: jnp.dtype) -> None:
        self.transform = Dense(config.hidden_size, config.hidden_size, dtype)
        self.norm = LayerNorm(config.hidden_size, getattr(config, "layer_norm_eps", 1e-12))
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))
        self.activation = ACTIVATIONS[config.masked_lm_activation]
        self.dtype = dtype

    def matrix(self, body: Body) -> jax.Array:
        """What hidden states are multiplied by, (vocabulary, hidden)."""
        return body.vocabulary()

    def __call__(self, hidden: jax.Array, matrix: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """tokens: int32 (n,), of which alone logits are wanted: (..., n)."""
        bias = self.bias[...]
        if tokens is not None:
            matrix, bias = matrix[tokens], bias[tokens]
        hidden = self.norm(self.activation(self.transform(hidden)))
        logits = dot("...h,vh->...v", hidden, matrix, self.dtype)
        return logits + jnp.broadcast_to(bias.astype(logits.dtype), logits.shape)


def average(hidden: jax.Array, masks: jax.Array) -> jax.Array:
    """Means over the tokens of masks (batch, n, length), scaled to the length √hidden: float32 (batch, n, hidden)."""
    mean = jax.vmap(mean_pool, in_axes=(None, 1), out_axes=1)(hidden, masks)
    return mean * jax.lax.rsqrt(jnp.maximum((mean * mean).mean(-1, keepdims=True), 1e-12))


def gap(cloze: Cloze, attention_mask: jax.Array) -> jax.Array:
    """Position of the gap of rows padded on the right, int32 (batch,), of their mask (batch, length)."""
    if cloze.gap >= 0:
        return jnp.full(attention_mask.shape[0], cloze.gap, jnp.int32)
    return jnp.maximum(attention_mask.sum(-1, dtype=jnp.int32) + cloze.gap, 0)


class TextModel(nnx.Module):
    """A body and the heads asked for. With seeds (uint32 (batch,)) dropout is on; without, all is deterministic."""

    def __init__(
        self,
        config: Config,
        *,
        num_labels: int | None = None,
        classifier: Classifier | None = "pooled",
        pooler: bool = False,
        masked_lm: bool = False,
        causal_lm: bool = False,
        cloze: Cloze | None = None,
        dtype: jnp.dtype,
    ) -> None:
        (self.part,) = config.parts
        setattr(self, self.part, config.body(dtype))
        if pooler or (num_labels is not None and classifier == "pooled"):
            self.pooler = Dense(config.hidden_size, config.hidden_size, dtype)
        if num_labels is not None and cloze is None:
            self.classifier = Dense(config.hidden_size, num_labels, dtype, bias=classifier != "last-token")
        if masked_lm:
            self.masked_lm = MaskedLMHead(config, dtype)
        if causal_lm:
            self.lm_head = NextTokenHead(config, dtype)  # type: ignore[arg-type]  # of decoders alone
        self.causal_lm = causal_lm
        self.pooled, self.pooling, self.averaged = classifier == "pooled", config.pooling, classifier == "mean"
        self.of_tokens, self.cloze = classifier in OF_TOKENS, cloze
        self.reads_one = classifier != "mean" and not self.of_tokens and (cloze is None or config.causal)
        self.dropout_rate = config.dropout_of(classifier)
        self.remat: Remat = "none"
        self.hidden_dtype = "float32"
        self.in_parts = False
        self.stacks: Stacks = ()

    @property
    def body(self) -> Body:
        """The encoder or decoder."""
        return getattr(self, self.part)

    def hidden_states(
        self,
        batch: Mapping[str, jax.Array],
        *,
        seeds: jax.Array | None = None,
        frozen: tuple[bool, ...] = (),
        stop: int | None = None,
        readout: bool = False,
    ) -> list[jax.Array]:
        """Hidden states, (batch, length, hidden) each: the embeddings, then every layer's output, in `hidden_dtype`; the last
        is finished, and float32.

        stop: only those of the first `stop` layers, as the next layer takes them, even where there is none.

        Of layers that run as one loop (see `ftjax.models.build`) only what the last of them gives.

        batch: `input_ids`, `token_type_ids` and `attention_mask`; or `prefix`, the hidden state from which to go on.
            `prefix` is the output of as many layers as lead the list `frozen` (see `ftjax.models.Model.prefix_layers`).
        seeds: uint32 (batch,) for dropout; None: the result is deterministic. frozen: for the embeddings and every
            layer, whether its dropout is off in any case.
        readout: the last one is what a classifier reads, (batch, 1, hidden): one position, or with `mean` their average;
            or the gap's; all of it where the classifier is one of tokens; the positions that the batch `reads`.
        """
        body, layers = self.body, len(self.body.layers)
        whole, stop = stop is None, layers if stop is None else stop
        frozen = frozen or (False,) * (layers + 1)
        seeds = None if seeds is None else fold_in(seeds, BODY_SEED)
        by_stage = [None if off else seeds for off in frozen]
        start = leading(frozen) if "prefix" in batch else 0
        first = batch["prefix"] if "prefix" in batch else body.embed(batch, by_stage[0])
        states = [first.astype(self.hidden_dtype)]
        context: Any = body.context(batch) if start < stop else None
        # of the last layer only one position is read
        single = readout and self.reads_one and stop == layers
        loops, number = {run.start: run for run in self.stacks}, start
        while number < stop:
            run = loops.get(number, range(number, number + 1))
            if len(run) > 1:
                assert isinstance(body, Decoder)
                states.append(body.scan(run, states[-1], context, by_stage[number + 1], self.remembered))
                if single and run.stop == layers:
                    states[-1] = positions_at(states[-1], context.read)
            else:
                layer = functools.partial(body.layer, number, readout=single and number == layers - 1)
                states.append(self.remembered(layer)(states[-1], context, by_stage[number + 1]))
            number = run.stop
        if readout and self.averaged and start < stop == layers:
            of = (
                segment_masks(batch["segment_ids"], batch["reads"].shape[1])
                if "reads" in batch
                else batch["attention_mask"][:, None]
            )
            states[-1] = average(states[-1], of)
        if readout and self.cloze is not None and not self.reads_one and start < stop == layers:
            states[-1] = positions_at(states[-1], gap(self.cloze, batch["attention_mask"])[:, None])
        if whole:
            states[-1] = body.finish(states[-1])
        return [*states[:-1], states[-1].astype(jnp.float32)]

    def remembered(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """The layer that keeps for the backward pass what `remat` allows, and in no case what it has gathered.

        none: all that is computed; dots: the outputs of dense layers; full: nothing.
        """
        if self.remat == "full":
            return jax.checkpoint(layer)
        if self.remat == "dots":
            return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(DENSE, ATTENTION))
        if self.in_parts:
            return jax.checkpoint(layer, policy=all_but_gathered)
        return layer

    def pool(self, first: jax.Array, *, seeds: jax.Array | None = None) -> jax.Array:
        """Last hidden state of first tokens, (batch, ..., hidden), to activation(dense(it)): the same shape."""
        if self.pooling.dropout_before:
            first = dropout(first, self.dropout_rate, None if seeds is None else fold_in(seeds, UNPOOLED_SEED))
        return ACTIVATIONS[self.pooling.activation](self.pooler(first))

    def classify(self, hidden: jax.Array, *, seeds: jax.Array | None = None, every: bool = False) -> jax.Array:
        """Last hidden state with `readout`, (batch, 1, hidden), to float32 logits (batch, labels).

        A classifier of tokens takes it whole and gives (batch, length, labels); so does any where `every` position is read.
        """
        if self.cloze is not None:
            return self.word_logits(hidden[:, 0], self.cloze.words)
        read = hidden if every or self.of_tokens else hidden[:, 0]
        if self.pooled:
            read = self.pool(read, seeds=seeds)
        return self.classifier(dropout(read, self.dropout_rate, None if seeds is None else fold_in(seeds, POOLED_SEED)))

    def word_logits(self, hidden: jax.Array, words: tuple[tuple[int, ...], ...]) -> jax.Array:
        """Hidden states (batch, hidden) to the mean logit of each class's words, token ids: float32 (batch, classes).

        They meet only these rows of the vocabulary matrix.
        """
        head: Any = self.lm_head if self.causal_lm else self.masked_lm
        tokens = jnp.asarray([token for every in words for token in every], jnp.int32)
        logits = head(hidden, head.matrix(self.body), tokens)
        ends = np.cumsum([len(every) for every in words])[:-1].tolist()
        return jnp.stack([part.mean(-1) for part in jnp.split(logits, ends, axis=-1)], axis=-1)

    def vocabulary_head(self) -> Callable[[jax.Array], jax.Array]:
        """What makes float32 logits over the vocabulary of hidden states (..., hidden).

        The matrix is read now: a loop over blocks of positions does not gather it in every turn.
        """
        head: Any = self.lm_head if self.causal_lm else self.masked_lm
        return functools.partial(head, matrix=head.matrix(self.body))

    def vocabulary_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states (..., hidden) to float32 logits over the vocabulary; give only the positions that need them."""
        return self.vocabulary_head()(hidden)
