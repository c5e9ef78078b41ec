"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805): an encoder with learned positions and post-layer-norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.errors import InputError, did_you_mean
from ftjax.models.layers import ACTIVATIONS, Dense, Embedding, LayerNorm, attention
from ftjax.random import dropout, fold_in


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The numbers that fix a BERT; the names are those of Hugging Face's config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str) -> BertConfig:
        """Read config.json's dictionary; raises InputError naming `source` for what would change the result unnoticed."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        self = cls(**{name: value for name, value in config.items() if name in known})
        for name, value in dataclasses.asdict(self).items():
            number = float if "float" in str(known[name].type) else int
            optional = value is None and "None" in str(known[name].type)
            if name != "hidden_act" and not optional and (isinstance(value, bool) or not isinstance(value, int | number)):
                raise InputError(f"{source}: {name} is {value!r}, not a number.")
        if min(self.vocab_size, self.hidden_size, self.num_attention_heads, self.intermediate_size) < 1:
            raise InputError(f"{source}: vocab_size, hidden_size, num_attention_heads and intermediate_size must be positive.")
        if self.hidden_act not in ACTIVATIONS:
            near = did_you_mean(str(self.hidden_act), ACTIVATIONS)
            raise InputError(f"{source}: unknown hidden_act {self.hidden_act!r}; known are {', '.join(ACTIVATIONS)}.{near}")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{source}: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        for name, plain in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
            if config.get(name, plain) != plain:
                raise InputError(f"{source}: {name}={config[name]!r} is not supported for BERT; only {plain!r} is.")
        return self


class BertEmbeddings(nnx.Module):
    """Ids and token types (batch, length) to float32 (batch, length, hidden): word + position + type, normalised."""

    def __init__(self, config: BertConfig) -> None:
        self.word = Embedding(config.vocab_size, config.hidden_size)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, input_ids: jax.Array, token_type_ids: jax.Array, seeds: jax.Array | None) -> jax.Array:
        position = self.position(jnp.arange(input_ids.shape[1]))[None]
        hidden = self.word(input_ids) + self.token_type(token_type_ids)
        hidden = self.norm(hidden + jnp.broadcast_to(position, hidden.shape))
        return dropout(hidden, self.dropout_rate, seeds)


class BertAttention(nnx.Module):
    """Attention of queries (batch, queries, hidden) on (batch, length, hidden), projected: to the shape of the queries."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        size = config.hidden_size
        self.query, self.key, self.value, self.output = (Dense(size, size, dtype) for _ in range(4))
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.dtype = dtype

    def __call__(self, queries: jax.Array, hidden: jax.Array, bias: jax.Array, seeds: jax.Array | None) -> jax.Array:
        def by_head(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads)

        query, key, value = by_head(self.query(queries)), by_head(self.key(hidden)), by_head(self.value(hidden))
        context = attention(query, key, value, bias, dropout_rate=self.dropout_rate, seeds=seeds, dtype=self.dtype)
        return self.output(context.reshape(queries.shape))


class BertMLP(nnx.Module):
    """The position-wise feed-forward network."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        self.up = Dense(config.hidden_size, config.intermediate_size, dtype)
        self.down = Dense(config.intermediate_size, config.hidden_size, dtype)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(hidden)))


class BertLayer(nnx.Module):
    """One transformer layer: attention and MLP, each with dropout, residual and layer norm after it.

    With `first_token` only the output of the first position is computed, (batch, 1, hidden): it attends to all the
    others, but their own outputs would be read by nobody.
    """

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        self.attention = BertAttention(config, dtype)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = BertMLP(config, dtype)
        self.mlp_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, hidden: jax.Array, bias: jax.Array, seeds: jax.Array | None, *, first_token: bool = False) -> jax.Array:
        weights, after_attention, after_mlp = (None if seeds is None else fold_in(seeds, i) for i in range(3))
        queries = hidden[:, :1] if first_token else hidden
        attended = self.attention(queries, hidden, bias, weights)
        hidden = self.attention_norm(queries + dropout(attended, self.dropout_rate, after_attention))
        return self.mlp_norm(hidden + dropout(self.mlp(hidden), self.dropout_rate, after_mlp))


class BertEncoder(nnx.Module):
    """Embeddings and layers, run one after the other by whoever needs their outputs.

    `seeds` (uint32 (batch,), see `ftjax.random`) turns dropout on; None leaves it off.
    """

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        self.embeddings = BertEmbeddings(config)
        self.layers = nnx.List([BertLayer(config, dtype) for _ in range(config.num_hidden_layers)])

    def embed(self, input_ids: jax.Array, token_type_ids: jax.Array, seeds: jax.Array | None) -> jax.Array:
        """int32 (batch, length) each to float32 (batch, length, hidden), what the first layer takes."""
        return self.embeddings(input_ids, token_type_ids, seeds)

    def layer(
        self, number: int, hidden: jax.Array, bias: jax.Array, seeds: jax.Array | None, *, first_token: bool = False
    ) -> jax.Array:
        """The output of layer `number` for its input (batch, length, hidden); bias as of `attention_bias`."""
        return self.layers[number](hidden, bias, None if seeds is None else fold_in(seeds, number), first_token=first_token)
