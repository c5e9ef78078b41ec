"""What stands on an encoder: pooler, classifiers and the masked-language-modelling head, and the model they make."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.bert import BertConfig, BertEncoder
from ftjax.models.layers import ACTIVATIONS, Dense, LayerNorm, attention_bias, dot
from ftjax.random import dropout, fold_in

Classifier = Literal["pooled", "first-token"]
"""pooled: transformers' `BertForSequenceClassification` (dense, tanh, dropout, linear on the first token).
first-token: dropout and a linear layer on `last_hidden_state[:, 0]`."""

ENCODER_SEED, POOLED_SEED = 0, 1  # what `ftjax.random.fold_in` tells an example's uses of its seed apart by


def leading(frozen: tuple[bool, ...]) -> int:
    """How many layers have nothing but frozen stages before and in them; `frozen` lists the embeddings, then the layers."""
    stages = next((i for i, off in enumerate(frozen) if not off), len(frozen))
    return max(stages - 1, 0)


class MaskedLMHead(nnx.Module):
    """Hidden states (..., hidden) to float32 logits (..., vocabulary), with the word embeddings as the output matrix."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        self.transform = Dense(config.hidden_size, config.hidden_size, dtype)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        hidden = self.norm(self.activation(self.transform(hidden)))
        logits = dot("...h,vh->...v", hidden, embedding, self.dtype)
        return logits + jnp.broadcast_to(self.bias[...].astype(logits.dtype), logits.shape)


class TextModel(nnx.Module):
    """An encoder and the heads asked for. With seeds (uint32 (batch,)) dropout is on; without, all is deterministic."""

    def __init__(
        self,
        config: BertConfig,
        *,
        num_labels: int | None = None,
        classifier: Classifier = "pooled",
        pooler: bool = False,
        masked_lm: bool = False,
        dtype: jnp.dtype,
    ) -> None:
        self.encoder = BertEncoder(config, dtype)
        if pooler or (num_labels is not None and classifier == "pooled"):
            self.pooler = Dense(config.hidden_size, config.hidden_size, dtype)
        if num_labels is not None:
            self.classifier = Dense(config.hidden_size, num_labels, dtype)
        if masked_lm:
            self.masked_lm = MaskedLMHead(config, dtype)
        rate = config.classifier_dropout
        self.pooled = classifier == "pooled"
        self.dropout_rate = config.hidden_dropout_prob if rate is None else rate
        self.remat = False

    def hidden_states(
        self,
        batch: Mapping[str, jax.Array],
        *,
        seeds: jax.Array | None = None,
        frozen: tuple[bool, ...] = (),
        stop: int | None = None,
        first_token: bool = False,
    ) -> list[jax.Array]:
        """Hidden states, float32 (batch, length, hidden) each: the embeddings, then every layer's output up to layer `stop`.

        batch: `input_ids`, `token_type_ids` and `attention_mask`; or `prefix`, the hidden state from which to go on.
            `prefix` is the output of as many layers as lead the list `frozen` (see `ftjax.models.Model.prefix_layers`).
        seeds: uint32 (batch,) for dropout; None: the result is deterministic. frozen: for the embeddings and every
            layer, whether its dropout is off in any case. first_token: the last layer's output is (batch, 1, hidden).
        Where `remat` is set, what is inside a layer is computed again in the backward pass instead of kept.
        """
        layers = len(self.encoder.layers)
        frozen = frozen or (False,) * (layers + 1)
        seeds = None if seeds is None else fold_in(seeds, ENCODER_SEED)
        by_stage = [None if off else seeds for off in frozen]
        if "prefix" in batch:
            start, states = leading(frozen), [batch["prefix"]]
        else:
            start, states = 0, [self.encoder.embed(batch["input_ids"], batch["token_type_ids"], by_stage[0])]
        bias = attention_bias(batch["attention_mask"]) if "attention_mask" in batch else jnp.zeros((0,))
        for number in range(start, layers if stop is None else stop):
            only = first_token and number == layers - 1
            layer = functools.partial(self.encoder.layer, number, first_token=only)
            states.append((jax.checkpoint(layer) if self.remat else layer)(states[-1], bias, by_stage[number + 1]))
        return states

    def pool(self, hidden: jax.Array) -> jax.Array:
        """BERT's pooler: last hidden state (batch, length, hidden) to tanh(dense(first token)), (batch, hidden)."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def classify(self, hidden: jax.Array, *, seeds: jax.Array | None = None) -> jax.Array:
        """Last hidden state (batch, length or 1, hidden) to float32 logits (batch, labels)."""
        first = self.pool(hidden) if self.pooled else hidden[:, 0]
        return self.classifier(dropout(first, self.dropout_rate, None if seeds is None else fold_in(seeds, POOLED_SEED)))

    def vocabulary_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states (..., hidden) to float32 logits over the vocabulary; give only the positions that need them."""
        return self.masked_lm(hidden, self.encoder.embeddings.word.embedding[...])
