"""T5 (Raffel et al., 2020, https://arxiv.org/abs/1910.10683), its version 1.1 and Flan-T5 (Chung et al., 2022): an encoder, and
a decoder that attends to it.

Layers are normalised before, by root mean square; there are no biases; positions are a learned number on every score, by
bucketed distance and head, shared by a part's layers; scores are not scaled. Version 1.1 and Flan have a gated GELU for
the ReLU, and an output matrix of their own for the scaled word embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.errors import InputError, did_you_mean
from ftjax.models.body import Classifier, Config
from ftjax.models.dots import dot, products, weighted
from ftjax.models.layers import (
    ACTIVATIONS,
    Dense,
    Embedding,
    RMSNorm,
    attention_bias,
    attention_weights,
    distance_buckets,
    relative_buckets,
)
from ftjax.models.names import NameTable, Rule, embedding
from ftjax.random import dropout, fold_in

ENCODER_SEED, DECODER_SEED = range(2)  # an example's uses of its seed
EMBED_SEED, FINAL_SEED, LAYERS_SEED = range(3)  # a part's
KeysValues = tuple[jax.Array, jax.Array]
"""Keys and values, (batch, length, heads, head_size) each."""


def _dense(ours: str, theirs: str) -> Rule:
    return (f"{ours}.kernel", f"{theirs}.weight", True)  # no layer of T5 has a bias


def _scale(ours: str, theirs: str) -> Rule:
    return (f"{ours}.scale", f"{theirs}.weight", False)


def _attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return tuple(_dense(f"{ours}.{name}", f"{theirs}.{name[0]}") for name in ("query", "key", "value", "output"))


def _mlp(ours: str, theirs: str, gated: bool) -> tuple[Rule, ...]:
    up = (_dense(f"{ours}.gate", f"{theirs}.wi_0"), _dense(f"{ours}.up", f"{theirs}.wi_1"))
    return (*(up if gated else (_dense(f"{ours}.up", f"{theirs}.wi"),)), _dense(f"{ours}.down", f"{theirs}.wo"))


def names_of(*, gated: bool) -> NameTable:
    """For a feed-forward network with or without a gate. Base and task models spell alike."""
    encoder, decoder = "encoder.block.*.layer", "decoder.block.*.layer"
    relative = "block.0.layer.0.SelfAttention.relative_attention_bias"
    return NameTable(
        prefix="",
        rules=(
            *embedding("encoder.embeddings.word", "shared"),
            *embedding("encoder.embeddings.relative_attention_bias", f"encoder.{relative}"),
            *_attention("encoder.layers.*.attention", f"{encoder}.0.SelfAttention"),
            _scale("encoder.layers.*.attention_norm", f"{encoder}.0.layer_norm"),
            *_mlp("encoder.layers.*.mlp", f"{encoder}.1.DenseReluDense", gated),
            _scale("encoder.layers.*.mlp_norm", f"{encoder}.1.layer_norm"),
            _scale("encoder.norm", "encoder.final_layer_norm"),
            *embedding("decoder.embeddings.relative_attention_bias", f"decoder.{relative}"),
            *_attention("decoder.layers.*.attention", f"{decoder}.0.SelfAttention"),
            _scale("decoder.layers.*.attention_norm", f"{decoder}.0.layer_norm"),
            *_attention("decoder.layers.*.cross_attention", f"{decoder}.1.EncDecAttention"),
            _scale("decoder.layers.*.cross_attention_norm", f"{decoder}.1.layer_norm"),
            *_mlp("decoder.layers.*.mlp", f"{decoder}.2.DenseReluDense", gated),
            _scale("decoder.layers.*.mlp_norm", f"{decoder}.2.layer_norm"),
            _scale("decoder.norm", "decoder.final_layer_norm"),
            _dense("lm_head", "lm_head"),
        ),
        copies=tuple(
            (name, "encoder.embeddings.word.embedding")
            for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        ),
        carried=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        classes=("", "T5ForConditionalGeneration"),
    )


@dataclasses.dataclass(frozen=True)
class T5Config(Config):
    """T5's numbers; the defaults are those of transformers' T5Config, t5-small.

    own_lm_head: whether the files hold an output matrix apart from the word embeddings; not in config.json.
    """

    model_type: ClassVar[str] = "t5"
    table: ClassVar[NameTable] = names_of(gated=False)
    renamed: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "d_kv": "head_size",
        "d_ff": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "num_decoder_layers": "decoder_layers",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    parts: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    classifiers: ClassVar[tuple[Classifier, ...]] = ()
    has_masked_lm: ClassVar[bool] = False
    dropout_fields: ClassVar[tuple[str, ...]] = ("dropout_rate",)

    vocab_size: int = 32128
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 512
    head_size: int = 64
    decoder_layers: int | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_eps: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    decoder_start_token_id: int | None = None
    eos_token_id: int | None = 1
    own_lm_head: bool = False

    @property
    def names(self) -> NameTable:
        return names_of(gated=True) if self.gated else self.table

    def check(self, config: dict[str, Any], source: str) -> None:
        if self.activation not in ACTIVATIONS or self.feed_forward_proj.removeprefix("gated-").count("-"):
            near = did_you_mean(str(self.feed_forward_proj), ("relu", "gated-gelu"))
            raise InputError(
                f"{source}: unknown feed_forward_proj {self.feed_forward_proj!r}; known are an activation or gated- and an "
                f"activation, of {', '.join(ACTIVATIONS)}.{near}"
            )
        self.only(
            config,
            source,
            dense_act_fn=self.activation,
            is_gated_act=self.gated,
            is_encoder_decoder=True,
            is_decoder=False,
            pruned_heads={},
        )
        if self.head_size < 1:
            raise InputError(f"{source}: d_kv must be positive.")
        buckets, furthest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if not 4 <= buckets < 2 * furthest:
            raise InputError(
                f"{source}: relative_attention_num_buckets {buckets} must be at least 4 and less than twice "
                f"relative_attention_max_distance {furthest}."
            )

    def for_files(self, names: Collection[str]) -> Self:
        """transformers 4 writes tie_word_embeddings=false for version 1.1; 5 writes true for all, and whether to scale."""
        return dataclasses.replace(self, own_lm_head="lm_head.weight" in names and not self.scales_output)

    def depth(self, part: str) -> int:
        own = self.decoder_layers if part == "decoder" else None
        return self.num_hidden_layers if own is None else own

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network's inner layer is a product of two."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Of the inner layer; gated-gelu means the approximation by tanh."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @property
    def scales_output(self) -> bool:
        """Whether the last hidden states are divided by the root of their size before they meet the output matrix."""
        return self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs

    @property
    def start_token_id(self) -> int:
        """What a decoder's input begins with."""
        return (self.pad_token_id or 0) if self.decoder_start_token_id is None else self.decoder_start_token_id


class T5Embeddings(nnx.Module):
    """What a part has besides layers: the learned numbers for distances and, in the encoder, the word embeddings of both."""

    def __init__(self, config: T5Config, *, words: bool) -> None:
        if words:
            self.word = Embedding(config.vocab_size, config.hidden_size)
        self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, config.num_attention_heads)

    def bias(self, buckets: jax.Array) -> jax.Array:
        """Buckets (queries, keys) to what scores get added, float32 (1, heads, queries, keys)."""
        return self.relative_attention_bias(buckets).transpose(2, 0, 1)[None]


class T5Attention(nnx.Module):
    """Attention of (batch, queries, hidden) to keys and values that are given, projected to the same shape."""

    def __init__(self, config: T5Config, dtype: jnp.dtype) -> None:
        inner = config.num_attention_heads * config.head_size
        self.query, self.key, self.value = (Dense(config.hidden_size, inner, dtype, bias=False) for _ in range(3))
        self.output = Dense(inner, config.hidden_size, dtype, bias=False)
        self.heads, self.dropout_rate, self.dtype = config.num_attention_heads, config.dropout_rate, dtype

    def keys_values(self, hidden: jax.Array, seeds: jax.Array | None = None) -> KeysValues:
        """Of hidden states (batch, length, hidden)."""
        return self.by_head(self.key(hidden, seeds)), self.by_head(self.value(hidden, seeds))

    def __call__(self, hidden: jax.Array, keys_values: KeysValues, bias: jax.Array, seeds: jax.Array | None) -> jax.Array:
        key, value = keys_values
        scores = products(self.by_head(self.query(hidden, seeds)), key, self.dtype)
        weights = attention_weights(scores, 1, bias, self.dropout_rate, seeds)  # a size of 1: scores are not scaled
        context = weighted(weights, value, self.dtype)
        return self.output(context.reshape(*hidden.shape[:2], -1), seeds)

    def by_head(self, x: jax.Array) -> jax.Array:
        """(batch, length, heads · head_size) to (batch, length, heads, head_size)."""
        return x.reshape(*x.shape[:-1], self.heads, -1)


class T5MLP(nnx.Module):
    """The position-wise feed-forward network, with or without a gate (Shazeer, 2020)."""

    def __init__(self, config: T5Config, dtype: jnp.dtype) -> None:
        self.up = Dense(config.hidden_size, config.intermediate_size, dtype, bias=False)
        self.gate = Dense(config.hidden_size, config.intermediate_size, dtype, bias=False) if config.gated else None
        self.down = Dense(config.intermediate_size, config.hidden_size, dtype, bias=False)
        self.activation, self.dropout_rate = ACTIVATIONS[config.activation], config.dropout_rate

    def __call__(self, hidden: jax.Array, seeds: jax.Array | None) -> jax.Array:
        up = self.up(hidden, seeds)
        inner = self.activation(up) if self.gate is None else self.activation(self.gate(hidden, seeds)) * up
        return self.down(dropout(inner, self.dropout_rate, seeds), seeds)


class T5Layer(nnx.Module):
    """Self-attention, in a decoder attention to the encoder's output, and MLP: each normalised before, with dropout after."""

    def __init__(self, config: T5Config, dtype: jnp.dtype, *, cross: bool) -> None:
        self.attention = T5Attention(config, dtype)
        self.attention_norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        if cross:
            self.cross_attention = T5Attention(config, dtype)
            self.cross_attention_norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = T5MLP(config, dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_rate = config.dropout_rate

    def attend(
        self, normal: jax.Array, hidden: jax.Array, keys_values: KeysValues, bias: jax.Array, seeds: jax.Array | None
    ) -> jax.Array:
        """`hidden` with the self-attention of `normal`, its normalised form, added."""
        weights, after = _two(seeds, 0)
        return hidden + dropout(self.attention(normal, keys_values, bias, weights), self.dropout_rate, after)

    def attend_across(self, hidden: jax.Array, keys_values: KeysValues, bias: jax.Array, seeds: jax.Array | None) -> jax.Array:
        """`hidden` with the attention to the encoder's output added."""
        weights, after = _two(seeds, 2)
        attended = self.cross_attention(self.cross_attention_norm(hidden), keys_values, bias, weights)
        return hidden + dropout(attended, self.dropout_rate, after)

    def feed(self, hidden: jax.Array, seeds: jax.Array | None) -> jax.Array:
        """`hidden` with what the MLP makes of it added."""
        inner, after = _two(seeds, 4)
        return hidden + dropout(self.mlp(self.mlp_norm(hidden), inner), self.dropout_rate, after)


class T5Part(nnx.Module):
    """The encoder or the decoder: embeddings, layers and a last norm."""

    def __init__(self, config: T5Config, dtype: jnp.dtype, part: str) -> None:
        self.embeddings = T5Embeddings(config, words=part == "encoder")
        self.layers = nnx.List([T5Layer(config, dtype, cross=part == "decoder") for _ in range(config.depth(part))])
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.causal = part == "decoder"
        self.buckets, self.max_distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        self.dropout_rate = config.dropout_rate

    def bias(self, attention_mask: jax.Array) -> jax.Array:
        """Mask (batch, length) to what self-attention's scores get added, float32 (batch, heads, length, length)."""
        batch, length = attention_mask.shape
        buckets = relative_buckets(length, length, buckets=self.buckets, max_distance=self.max_distance, causal=self.causal)
        relative = self.embeddings.bias(buckets)
        shape = (batch, *relative.shape[1:])
        bias = jnp.broadcast_to(attention_bias(attention_mask), shape)
        if self.causal:
            later = jnp.arange(length)[None, :] > jnp.arange(length)[:, None]
            bias = jnp.where(jnp.broadcast_to(later, shape), jnp.finfo(jnp.float32).min, bias)
        return bias + jnp.broadcast_to(relative, shape)

    def states(
        self,
        embedded: jax.Array,
        attention_mask: jax.Array,
        memory: tuple[jax.Array, jax.Array] | None,
        seeds: jax.Array | None,
        frozen: tuple[bool, ...],
    ) -> list[jax.Array]:
        """Hidden states (batch, length, hidden): the embeddings, then every layer's output, the last one normalised.

        memory: the encoder's output (batch, source, hidden) and its mask (batch, source), for a decoder.
        """
        off = frozen or (False,) * (len(self.layers) + 1)
        states = [dropout(embedded, self.dropout_rate, None if seeds is None or off[0] else fold_in(seeds, EMBED_SEED))]
        bias = self.bias(attention_mask)
        for number, layer in enumerate(self.layers):
            own = None if seeds is None or off[number + 1] else fold_in(seeds, LAYERS_SEED + number)
            hidden = states[-1]
            normal = layer.attention_norm(hidden)
            hidden = layer.attend(normal, hidden, layer.attention.keys_values(normal, own), bias, own)
            if memory is not None:
                hidden = layer.attend_across(
                    hidden, layer.cross_attention.keys_values(memory[0], own), attention_bias(memory[1]), own
                )
            states.append(layer.feed(hidden, own))
        last = None if seeds is None or off[-1] else fold_in(seeds, FINAL_SEED)
        states[-1] = dropout(self.norm(states[-1]), self.dropout_rate, last)
        return states


class Cache(NamedTuple):
    """What decoding token by token remembers, in the compute dtype; the second axis is the batch.

    keys, values: of the decoder's tokens so far, (layers, batch, length, heads, head_size), zeros from `position` on.
    cross_keys, cross_values: of the encoder's output, (layers, batch, source, heads, head_size).
    cross_bias: float32 (1, batch, 1, 1, source). position: int32 scalar, how many tokens there are.
    """

    keys: jax.Array
    values: jax.Array
    cross_keys: jax.Array
    cross_values: jax.Array
    cross_bias: jax.Array
    position: jax.Array


class T5(nnx.Module):
    """Encoder, decoder and the output matrix. With seeds (uint32 (batch,)) dropout is on; without, all is deterministic.

    frozen: for the embeddings and every layer of the encoder, then of the decoder, whether its dropout is off in any case.
    """

    def __init__(self, config: T5Config, dtype: jnp.dtype) -> None:
        self.encoder = T5Part(config, dtype, "encoder")
        self.decoder = T5Part(config, dtype, "decoder")
        self.lm_head = Dense(config.hidden_size, config.vocab_size, dtype, bias=False) if config.own_lm_head else None
        self.scale = config.hidden_size**-0.5 if config.scales_output else 1.0
        self.dtype = dtype

    def encode(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        *,
        seeds: jax.Array | None = None,
        frozen: tuple[bool, ...] = (),
    ) -> list[jax.Array]:
        """Hidden states of the encoder, float32 (batch, source, hidden) each; the last one is its output.

        input_ids and attention_mask, int (batch, source), padded on either side.
        """
        seeds = None if seeds is None else fold_in(seeds, ENCODER_SEED)
        embedded = self.encoder.embeddings.word(input_ids)
        return self.encoder.states(embedded, attention_mask, None, seeds, frozen[: len(self.encoder.layers) + 1])

    def decode(
        self,
        decoder_input_ids: jax.Array,
        encoded: jax.Array,
        attention_mask: jax.Array,
        *,
        decoder_attention_mask: jax.Array | None = None,
        seeds: jax.Array | None = None,
        frozen: tuple[bool, ...] = (),
    ) -> list[jax.Array]:
        """Hidden states of the decoder for tokens that are all known, float32 (batch, target, hidden) each.

        decoder_input_ids, int (batch, target): what stands before each token to predict. encoded: the encoder's output
        (batch, source, hidden); attention_mask, int (batch, source): its mask.
        """
        mask = jnp.ones_like(decoder_input_ids) if decoder_attention_mask is None else decoder_attention_mask
        seeds = None if seeds is None else fold_in(seeds, DECODER_SEED)
        embedded = self.encoder.embeddings.word(decoder_input_ids)
        own = frozen[len(self.encoder.layers) + 1 :]
        own = own and (own[0] and frozen[0], *own[1:])  # the word embeddings are the encoder's
        return self.decoder.states(embedded, mask, (encoded, attention_mask), seeds, own)

    def vocabulary_logits(self, hidden: jax.Array) -> jax.Array:
        """The decoder's last hidden states (..., hidden) to float32 logits (..., vocabulary)."""
        hidden = hidden * self.scale
        if self.lm_head is None:
            return dot("...h,vh->...v", hidden, self.encoder.embeddings.word.embedding[...], self.dtype)
        return self.lm_head(hidden)

    def start(self, encoded: jax.Array, attention_mask: jax.Array, length: int) -> Cache:
        """An empty cache for up to `length` tokens: encoded (batch, source, hidden) and its mask as for `decode`."""
        cross = [layer.cross_attention.keys_values(encoded) for layer in self.decoder.layers]
        keys, values = (jnp.stack(each).astype(self.dtype) for each in zip(*cross, strict=True))
        empty = jnp.zeros((*keys.shape[:2], length, *keys.shape[3:]), self.dtype)
        return Cache(empty, empty, keys, values, attention_bias(attention_mask)[None], jnp.int32(0))

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The next tokens, int (batch,), to float32 logits (batch, vocabulary) for those after them, and the cache with them.

        The same as `decode` for all tokens up to these, at the cost of one. No more than the cache's length may be taken.
        """
        length = cache.keys.shape[2]
        back = cache.position - jnp.arange(length)  # how far back each place of the cache lies
        by_distance = distance_buckets(length, buckets=self.decoder.buckets, max_distance=self.decoder.max_distance)
        bias = self.decoder.embeddings.bias(jnp.asarray(by_distance)[jnp.maximum(back, 0)][None])
        bias = jnp.where(jnp.broadcast_to(back < 0, bias.shape), jnp.finfo(jnp.float32).min, bias)
        hidden = self.encoder.embeddings.word(tokens[:, None])
        keys, values = cache.keys, cache.values
        for number, layer in enumerate(self.decoder.layers):
            normal = layer.attention_norm(hidden)
            key, value = (x[None].astype(self.dtype) for x in layer.attention.keys_values(normal))
            keys = jax.lax.dynamic_update_slice(keys, key, (number, 0, cache.position, 0, 0))
            values = jax.lax.dynamic_update_slice(values, value, (number, 0, cache.position, 0, 0))
            hidden = layer.attend(normal, hidden, (keys[number], values[number]), bias, None)
            across = (cache.cross_keys[number], cache.cross_values[number])
            hidden = layer.feed(layer.attend_across(hidden, across, cache.cross_bias[0], None), None)
        logits = self.vocabulary_logits(self.decoder.norm(hidden))[:, 0]
        return logits, cache._replace(keys=keys, values=values, position=cache.position + 1)


def shift_right(labels: jax.Array, config: T5Config) -> jax.Array:
    """Tokens to predict, int (batch, target), -100 where there is none, to what a decoder reads before each: same shape."""
    shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=config.start_token_id)
    return jnp.where(shifted < 0, config.pad_token_id or 0, shifted)


def _two(seeds: jax.Array | None, first: int) -> tuple[jax.Array | None, jax.Array | None]:
    return (None, None) if seeds is None else (fold_in(seeds, first), fold_in(seeds, first + 1))
