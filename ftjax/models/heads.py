"""What stands on an encoder: pooler, classifiers and the masked-language-modelling head, and the model they make."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.bert import BertConfig, BertEncoder
from ftjax.models.layers import ACTIVATIONS, Dense, LayerNorm, dot
from ftjax.random import dropout, fold_in

Classifier = Literal["pooled", "first-token"]
"""pooled: transformers' `BertForSequenceClassification` (dense, tanh, dropout, linear on the first token).
first-token: dropout and a linear layer on `last_hidden_state[:, 0]`."""

ENCODER_SEED, POOLED_SEED = 0, 1  # what `ftjax.random.fold_in` tells an example's uses of its seed apart by


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
    """An encoder and the heads asked for. Arrays are (batch, length) int32; seeds are uint32 (batch,).

    With `train=True` dropout is on and needs `seeds`; with `train=False` the result is deterministic.
    """

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

    def hidden_states(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        token_type_ids: jax.Array,
        *,
        train: bool = False,
        seeds: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """All hidden states, float32 (batch, length, hidden) each: the embeddings, then every layer's output."""
        if train and seeds is None:
            raise ValueError("train=True needs seeds (uint32, one an example): see ftjax.random.example_seeds.")
        encoder_seeds = fold_in(seeds, ENCODER_SEED) if train and seeds is not None else None
        return self.encoder(input_ids, attention_mask, token_type_ids, encoder_seeds)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """BERT's pooler: last hidden state (batch, length, hidden) to tanh(dense(first token)), (batch, hidden)."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def classify(self, hidden: jax.Array, *, train: bool = False, seeds: jax.Array | None = None) -> jax.Array:
        """Last hidden state (batch, length, hidden) to float32 logits (batch, labels)."""
        first = self.pool(hidden) if self.pooled else hidden[:, 0]
        return self.classifier(dropout(first, self.dropout_rate, fold_in(seeds, POOLED_SEED) if train else None))

    def vocabulary_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states (..., hidden) to float32 logits over the vocabulary; give only the positions that need them."""
        return self.masked_lm(hidden, self.encoder.embeddings.word.embedding[...])
