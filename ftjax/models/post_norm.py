"""The encoder that BERT and its kin share: learned positions, and a layer norm after every residual (Vaswani et al., 2017).

What tells the kin apart is in their configs: the heads' activations, how positions are counted, which embeddings there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.errors import InputError, did_you_mean
from ftjax.models.body import Classifier, Config
from ftjax.models.dots import dot
from ftjax.models.layers import (
    ACTIVATIONS,
    Dense,
    Embedding,
    LayerNorm,
    attention,
    attention_bias,
    attention_weights,
    positions_at,
    residual,
    segment_bias,
    segment_positions,
)
from ftjax.random import dropout, fold_in


@dataclasses.dataclass(frozen=True)
class PostNormConfig(Config):
    """What the architectures have in common."""

    packs: ClassVar[tuple[Classifier, ...]] = ("pooled", "first-token", "mean", "every-token")
    dropout_fields: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    attention_output_dropout: ClassVar[bool] = True
    """Whether there is dropout between the attention and its residual."""

    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12

    def check(self, config: dict[str, Any], source: str) -> None:
        if self.hidden_act not in ACTIVATIONS:
            near = did_you_mean(str(self.hidden_act), ACTIVATIONS)
            raise InputError(f"{source}: unknown activation {self.hidden_act!r}; known are {', '.join(ACTIVATIONS)}.{near}")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{source}: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.token_types < 0:
            raise InputError(f"{source}: type_vocab_size must not be negative.")
        self.only(
            config, source, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, pruned_heads={}
        )

    def body(self, dtype: jnp.dtype) -> PostNormEncoder:
        return PostNormEncoder(self, dtype)

    @property
    def embedding_width(self) -> int:
        """Numbers a token's embedding has; a projection follows where that is not `hidden_size`."""
        return self.hidden_size

    @property
    def token_types(self) -> int:
        """How many kinds of tokens have an embedding; 0: there is no such embedding."""
        return 0

    @property
    def padding_id(self) -> int | None:
        """The id whose tokens are left out when positions are counted, see `token_positions`; None: all are counted."""
        return None

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob


def token_positions(input_ids: jax.Array, padding: int) -> jax.Array:
    """Positions of ids (batch, length), int32: the first token's is padding + 1, and padding itself has its id for one."""
    token = (input_ids != padding).astype(jnp.int32)
    return jnp.cumsum(token, -1) * token + padding


class Context(NamedTuple):
    """What all layers need besides hidden states.

    bias: of attention, as `ftjax.models.layers.attention` takes it. reads: the positions that a classifier reads, int32
    (batch, examples); None: the first.
    """

    bias: jax.Array
    reads: jax.Array | None


class PostNormEmbeddings(nnx.Module):
    """Ids and token types (batch, length) to float32 (batch, length, hidden): word + type + position, normalised.

    Token types are read only where there is more than one. Positions are counted within segments, if there are any.
    """

    def __init__(self, config: PostNormConfig, dtype: jnp.dtype) -> None:
        width = config.embedding_width
        self.word = Embedding(config.vocab_size, width)
        self.position = Embedding(config.max_position_embeddings, width)
        if config.token_types:
            self.token_type = Embedding(config.token_types, width)
        self.norm = LayerNorm(width, config.layer_norm_eps, once=dtype != jnp.float32)
        self.projection = None if width == config.hidden_size else Dense(width, config.hidden_size, dtype)
        self.token_types, self.padding_id = config.token_types, config.padding_id
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, batch: Mapping[str, jax.Array], seeds: jax.Array | None) -> jax.Array:
        input_ids = batch["input_ids"]
        hidden = self.word(input_ids)
        if self.token_types:
            hidden += self.token_type(batch["token_type_ids"] if self.token_types > 1 else jnp.zeros_like(input_ids))
        if "segment_ids" in batch:
            positions = segment_positions(batch["segment_ids"]) + (0 if self.padding_id is None else self.padding_id + 1)
        elif self.padding_id is None:
            positions = jnp.arange(input_ids.shape[1])[None]
        else:
            positions = token_positions(input_ids, self.padding_id)
        hidden = self.norm(hidden + jnp.broadcast_to(self.position(positions), hidden.shape))
        hidden = dropout(hidden, self.dropout_rate, seeds)
        return hidden if self.projection is None else self.projection(hidden)


class PostNormAttention(nnx.Module):
    """Self-attention, projected: (batch, length, hidden) to the same shape, or to that of a few positions by `read`."""

    def __init__(self, config: PostNormConfig, dtype: jnp.dtype) -> None:
        size = config.hidden_size
        self.query, self.key, self.value, self.output = (Dense(size, size, dtype) for _ in range(4))
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, bias: jax.Array, seeds: jax.Array | None) -> jax.Array:
        query, key, value = (self.by_head(dense(hidden, seeds)) for dense in (self.query, self.key, self.value))
        options = {"dropout_rate": self.dropout_rate, "seeds": seeds, "dtype": self.dtype, "kept": hidden.dtype}
        context = attention(query, key, value, bias, **options)
        return self.output(context.reshape(hidden.shape), seeds)

    def read(self, at: jax.Array, hidden: jax.Array, bias: jax.Array, seeds: jax.Array | None) -> jax.Array:
        """The output of a few positions alone, at heads / hidden each of what keys and values of all positions would cost.

        at: their hidden states, (batch, n, hidden); bias: theirs, (batch, 1 or heads, n or 1, length).

        Few queries let the projections change sides: q · (h W + b) = (W q) · h + q · b for the scores, and
        Σ w (h W + b) = (Σ w h) W + (Σ w) b for the context. (Not with LoRA's dropout, which gives every h a W of its own.)
        """
        query = self.by_head(self.query(at, seeds))  # (batch, n, heads, head_size)
        if seeds is not None and (self.key.lora_dropout or self.value.lora_dropout):
            key, value = (self.by_head(dense(hidden, seeds)) for dense in (self.key, self.value))
            context = attention(query, key, value, bias, dropout_rate=self.dropout_rate, seeds=seeds, dtype=self.dtype)
            return self.output(context.reshape(at.shape), seeds)
        query = query.astype(jnp.float32)
        (key, key_bias), (value, value_bias) = (
            (self.by_head(dense.weight()[None])[0], self.by_head(dense.bias[...].astype(jnp.float32)[None, None]))  # type: ignore[index]
            for dense in (self.key, self.value)
        )
        along = dot("bqhd,ihd->bhqi", query, key, self.dtype)
        scores = dot("bhqi,bki->bhqk", along, hidden, self.dtype) + (query * key_bias).sum(-1).swapaxes(1, 2)[..., None]
        weights = attention_weights(scores, query.shape[-1], bias, self.dropout_rate, seeds)
        mixed = dot("bhqk,bki->bhqi", weights, hidden, self.dtype)
        context = dot("bhqi,ihd->bqhd", mixed, value, self.dtype) + weights.sum(-1).swapaxes(1, 2)[..., None] * value_bias
        return self.output(context.reshape(at.shape), seeds)

    def by_head(self, x: jax.Array) -> jax.Array:
        """(..., hidden) to (..., heads, head_size)."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


class PostNormMLP(nnx.Module):
    """The position-wise feed-forward network."""

    def __init__(self, config: PostNormConfig, dtype: jnp.dtype) -> None:
        self.up = Dense(config.hidden_size, config.intermediate_size, dtype)
        self.down = Dense(config.intermediate_size, config.hidden_size, dtype)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, hidden: jax.Array, seeds: jax.Array | None) -> jax.Array:
        return self.down(self.activation(self.up(hidden, seeds)), seeds)


class PostNormLayer(nnx.Module):
    """One transformer layer: attention and MLP, each with dropout, residual and layer norm after it.

    With `readout` only the output of the first position is computed, (batch, 1, hidden), or of those that a classifier
    `reads`: they attend to all the others, whose own outputs would be read by nobody.
    """

    def __init__(self, config: PostNormConfig, dtype: jnp.dtype) -> None:
        self.attention = PostNormAttention(config, dtype)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = PostNormMLP(config, dtype)
        self.mlp_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob
        self.attention_dropout_rate = config.hidden_dropout_prob if config.attention_output_dropout else 0.0

    def __call__(self, hidden: jax.Array, context: Context, seeds: jax.Array | None, *, readout: bool = False) -> jax.Array:
        bias, reads = context
        weights, after_attention, after_mlp = (None if seeds is None else fold_in(seeds, i) for i in range(3))
        if readout:
            at = hidden[:, :1] if reads is None else positions_at(hidden, reads)
            of = bias[:, :, :1] if reads is None else jnp.take_along_axis(bias, reads[:, None, :, None], axis=2)
            attended, hidden = self.attention.read(at, hidden, of, weights), at
        else:
            attended = self.attention(hidden, bias, weights)
        hidden = self.attention_norm(residual(hidden, dropout(attended, self.attention_dropout_rate, after_attention)))
        return self.mlp_norm(residual(hidden, dropout(self.mlp(hidden, after_mlp), self.dropout_rate, after_mlp)))


class PostNormEncoder(nnx.Module):
    """Embeddings and layers, see `ftjax.models.body.Body`; a classifier reads the first position."""

    def __init__(self, config: PostNormConfig, dtype: jnp.dtype) -> None:
        self.embeddings = PostNormEmbeddings(config, dtype)
        self.layers = nnx.List([PostNormLayer(config, dtype) for _ in range(config.num_hidden_layers)])

    def embed(self, batch: Mapping[str, jax.Array], seeds: jax.Array | None) -> jax.Array:
        return self.embeddings(batch, seeds)

    def context(self, batch: Mapping[str, jax.Array]) -> Context:
        bias = segment_bias(batch["segment_ids"]) if "segment_ids" in batch else attention_bias(batch["attention_mask"])
        return Context(bias, batch.get("reads"))

    def layer(
        self, number: int, hidden: jax.Array, context: Context, seeds: jax.Array | None, *, readout: bool = False
    ) -> jax.Array:
        return self.layers[number](hidden, context, None if seeds is None else fold_in(seeds, number), readout=readout)

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden

    def vocabulary(self) -> jax.Array:
        return self.embeddings.word.embedding[...]
