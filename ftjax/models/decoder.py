"""Decoders: one body for all families. What tells them apart is data: see `Design` and `Kind`.

Each layer is x + attention(norm(x)), then x + mlp(norm(x)). A position sees those before it in its own row, or with
`segment_ids` in its own segment of a packed row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.errors import InputError, did_you_mean
from ftjax.models import splash
from ftjax.models.body import Classifier, Config
from ftjax.models.dots import dot, matmul
from ftjax.models.layers import (
    ACTIVATIONS,
    Dense,
    Embedding,
    LayerNorm,
    RMSNorm,
    positions_at,
    residual,
    segment_masks,
    segment_positions,
)
from ftjax.models.names import NameTable
from ftjax.models.rope import Rope, Rotation, rotate
from ftjax.random import dropout, fold_in

Attention = Literal["reference", "fused", "interpreted"]
"""What computes attention, see `Decoder.fused`."""
Fused = Callable[..., jax.Array]
"""Attention by kernels: all of `flash_attention` or `splash_attention` given but query, key, value, rotation and scale."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What tells one family from another; the defaults are Llama's.

    norm: "rms" or "layer"; norm_offset: added to the scale of "rms". gated: the MLP is down(act(gate(x)) · up(x)).
    qkv_bias, output_bias, mlp_bias: whether these dense layers have one. query_key_norm: queries and keys are
    normalised head by head. output_norms: attention and MLP are normalised again before they are added.
    query_scale: what products of queries and keys are multiplied by. attention_softcap, logit_softcap: c · tanh(x / c)
    of attention scores and of the logits. embedding_scale: what word embeddings are multiplied by.
    """

    query_scale: float
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    output_norms: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """What layers of one kind share: how many positions they see back, themselves included, and their rotary positions.

    window: None is all. rope: None where positions are learned.
    """

    window: int | None
    rope: Rope | None


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Config):
    """The numbers of a decoder. layer_kinds: one a layer, or () for the family's own; see `kinds`."""

    parts: ClassVar[tuple[str, ...]] = ("decoder",)
    packs: ClassVar[tuple[Classifier, ...]] = ("last-token",)
    classifiers: ClassVar[tuple[Classifier, ...]] = ("last-token", "cloze")
    causal: ClassVar[bool] = True
    has_masked_lm: ClassVar[bool] = False
    dropout_fields: ClassVar[tuple[str, ...]] = ("attention_dropout", "residual_dropout", "embedding_dropout")

    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    pad_token_id: int | None = None
    layer_kinds: tuple[Kind, ...] = ()

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str) -> Self:
        config = {name: value for name, value in config.items() if name != "layer_kinds"}
        self = super().from_dict(config, source)
        return dataclasses.replace(self, layer_kinds=self.kinds_of(config, source))

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        """The kind of every layer, from config.json's dictionary; {} gives the family's own."""
        return (Kind(None, Rope.from_dict(config, source)),) * self.num_hidden_layers

    def body(self, dtype: jnp.dtype) -> Decoder:
        return Decoder(self, dtype)

    @property
    def names(self) -> NameTable:
        return self.table if self.tie_word_embeddings else dataclasses.replace(self.table, copies=())  # lm_head is its own

    @property
    def design(self) -> Design:
        """What tells the family from others."""
        raise NotImplementedError

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every layer."""
        return self.layer_kinds or self.kinds_of({}, self.model_type)

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values, each shared by as many query heads as fit."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def check(self, config: dict[str, Any], source: str) -> None:
        if self.hidden_act not in ACTIVATIONS:
            near = did_you_mean(str(self.hidden_act), ACTIVATIONS)
            raise InputError(f"{source}: unknown activation {self.hidden_act!r}; known are {', '.join(ACTIVATIONS)}.{near}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{source}: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if min(self.key_value_heads, self.head_size) < 1:
            raise InputError(f"{source}: numbers of heads and the size of a head must be positive.")
        if self.num_attention_heads % self.key_value_heads:
            raise InputError(
                f"{source}: num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.key_value_heads}."
            )
        if self.head_size % 2:
            raise InputError(f"{source}: a head of {self.head_size} features cannot be turned in pairs; the size must be even.")
        self.only(config, source, num_experts=None, num_local_experts=None, quantization_config=None, add_cross_attention=False)


def window_of(window: Any, source: str) -> int | None:
    """config.json's `sliding_window`: a positive number of positions, or None; InputError for anything else."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise InputError(f"{source}: sliding_window is {window!r}, not a positive number.")
    return window


def layer_types(config: Mapping[str, Any], usual: list[bool], source: str) -> list[bool]:
    """Whether each layer looks back over a window alone: as `layer_types` of config.json says, else as usual."""
    given, known = config.get("layer_types"), {"sliding_attention": True, "full_attention": False}
    if given is None:
        return usual
    if not isinstance(given, list) or len(given) != len(usual) or not all(isinstance(t, str) and t in known for t in given):
        raise InputError(f"{source}: layer_types must name {' or '.join(known)} for each of the {len(usual)} layers.")
    return [known[kind] for kind in given]


class KindContext(NamedTuple):
    """What layers of a kind need: the angles of positions, and which keys each query sees, bool (batch, queries, keys)."""

    rotation: Rotation | None
    visible: jax.Array


class Context(NamedTuple):
    """What the layers need besides hidden states. read: the position of each row's last token, int32 (batch,). segments: a
    number for what sees itself alone, int32 (batch, length)."""

    kinds: tuple[KindContext, ...]
    read: jax.Array
    segments: jax.Array


class Cache(NamedTuple):
    """Keys and values of the tokens so far, and which slots hold one.

    keys, values: an array a layer, (batch, slots, key-value heads, head size), in the compute dtype. mask: int32 (batch,
    slots), 0 for padding and slots that are still free. used: int32 scalar, how many slots have been filled.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array
    used: jax.Array


class Memory(NamedTuple):
    """A layer's part of a cache, and the slot from which on its new keys and values go."""

    keys: jax.Array
    values: jax.Array
    slot: jax.Array


def token_positions(batch: Mapping[str, jax.Array]) -> jax.Array:
    """int32 (batch, length): `positions`; or counted within each of `segment_ids`; or over the tokens of `attention_mask`."""
    if "positions" in batch:
        return batch["positions"]
    if "segment_ids" in batch:
        return segment_positions(batch["segment_ids"])
    return jnp.maximum(jnp.cumsum(batch["attention_mask"], axis=1, dtype=jnp.int32) - 1, 0)


def causal(first: jax.Array | int, length: int, mask: jax.Array, window: int | None) -> jax.Array:
    """Which keys the queries in slots first, …, first + length - 1 see: bool (batch, length, slots).

    mask: (batch, slots), not 0 where there is a token. window: of how many slots, the query's own included; None: all.
    """
    queries = first + jnp.arange(length, dtype=jnp.int32)[:, None]
    keys = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    return seen[None] & (mask[:, None, :] > 0)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap · tanh(x / cap): x, kept within ±cap; None: x as it is."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def make_norm(config: DecoderConfig, size: int) -> LayerNorm | RMSNorm:
    """The family's norm over this many features."""
    if config.design.norm == "layer":
        return LayerNorm(size, config.norm_eps)
    return RMSNorm(size, config.norm_eps, config.design.norm_offset)


class DecoderEmbeddings(nnx.Module):
    """Ids and positions (batch, length) to float32 (batch, length, hidden)."""

    def __init__(self, config: DecoderConfig) -> None:
        self.word = Embedding(config.vocab_size, config.hidden_size)
        learned = any(kind.rope is None for kind in config.kinds)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.scale, self.dropout_rate = config.design.embedding_scale, config.embedding_dropout

    def __call__(self, input_ids: jax.Array, positions: jax.Array, seeds: jax.Array | None) -> jax.Array:
        hidden = self.word(input_ids) * self.scale
        if self.position is not None:
            hidden += self.position(positions)
        return dropout(hidden, self.dropout_rate, seeds)


class DecoderAttention(nnx.Module):
    """Causal self-attention with grouped queries (Ainslie et al., 2023): (batch, length, hidden) to the same shape.

    read: int32 (batch, n): the output of these positions alone, (batch, n, hidden).
    memory: new keys and values are put into it, and all that is in it is looked at.
    fused: computes the mixed values from query, key and value in one kernel; taken with neither read, memory nor dropout.
    Comes with the keys and values.
    """

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype) -> None:
        hidden, size, design = config.hidden_size, config.head_size, config.design
        self.query = Dense(hidden, config.num_attention_heads * size, dtype, bias=design.qkv_bias, narrow=True)
        self.key, self.value = (
            Dense(hidden, config.key_value_heads * size, dtype, bias=design.qkv_bias, narrow=True) for _ in ("key", "value")
        )
        self.output = Dense(config.num_attention_heads * size, hidden, dtype, bias=design.output_bias, narrow=True)
        self.query_norm, self.key_norm = (make_norm(config, size) if design.query_key_norm else None for _ in ("query", "key"))
        self.size, self.dtype = size, dtype
        self.scale, self.softcap = design.query_scale, design.attention_softcap
        self.dropout_rate = config.attention_dropout

    def __call__(
        self,
        hidden: jax.Array,
        context: KindContext,
        seeds: jax.Array | None,
        *,
        read: jax.Array | None = None,
        memory: Memory | None = None,
        fused: Fused | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        rotation, visible = context
        asking = hidden if read is None else positions_at(hidden, read)
        query, key, value = (
            y.reshape(*y.shape[:2], -1, self.size)
            for y in (self.query(asking, seeds), self.key(hidden, seeds), self.value(hidden, seeds))
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if fused is not None and read is None and memory is None and (seeds is None or self.dropout_rate == 0.0):
            mixed = fused(query, key, value.astype(self.dtype), rotation, scale=self.scale)
            return self.output(mixed.reshape(*mixed.shape[:2], -1), seeds), (key, value)
        if rotation is not None:
            query = rotate(query, rotation if read is None else tuple(positions_at(part, read) for part in rotation))
            key = rotate(key, rotation)
        if read is not None:
            visible = positions_at(visible, read)
        key, value = key.astype(self.dtype), value.astype(self.dtype)
        if memory is not None:
            where = (0, memory.slot, 0, 0)
            key = jax.lax.dynamic_update_slice(memory.keys, key, where)
            value = jax.lax.dynamic_update_slice(memory.values, value, where)

        shared = query.reshape(*query.shape[:2], key.shape[2], -1, self.size)  # (batch, queries, key-value heads, group, size)
        scores = softcap(dot("bqngd,bknd->bngqk", shared, key, self.dtype) * self.scale, self.softcap)
        # Padding gets the lowest finite number, not minus infinity: a row that is all padding then stays finite
        scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = dropout(jax.nn.softmax(scores, axis=-1), self.dropout_rate, seeds)
        mixed = dot("bngqk,bknd->bqngd", weights, value, self.dtype)
        return self.output(mixed.reshape(*mixed.shape[:2], -1), seeds), (key, value)


class DecoderMLP(nnx.Module):
    """The position-wise feed-forward network, gated (Shazeer, 2020, https://arxiv.org/abs/2002.05202) or not."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype) -> None:
        sizes, bias = (config.hidden_size, config.intermediate_size), config.design.mlp_bias
        self.gate = Dense(*sizes, dtype, bias=bias, narrow=True) if config.design.gated else None
        self.up = Dense(*sizes, dtype, bias=bias, narrow=True)
        self.down = Dense(sizes[1], sizes[0], dtype, bias=bias, narrow=True)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, hidden: jax.Array, seeds: jax.Array | None) -> jax.Array:
        if self.gate is None:
            return self.down(self.activate(self.up(hidden, seeds)), seeds)
        return self.down(self.activate(self.gate(hidden, seeds)) * self.up(hidden, seeds), seeds)

    def activate(self, x: jax.Array) -> jax.Array:
        """The activation, computed in float32; the dtype stays."""
        return self.activation(x.astype(jnp.float32)).astype(x.dtype)


class DecoderLayer(nnx.Module):
    """One layer; its arguments and what comes back are those of `DecoderAttention`."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype) -> None:
        self.attention_norm = make_norm(config, config.hidden_size)
        self.attention = DecoderAttention(config, dtype)
        self.mlp_norm = make_norm(config, config.hidden_size)
        self.mlp = DecoderMLP(config, dtype)
        self.attention_output_norm, self.mlp_output_norm = (
            make_norm(config, config.hidden_size) if config.design.output_norms else None for _ in ("attention", "mlp")
        )
        self.dropout_rate = config.residual_dropout

    def __call__(
        self,
        hidden: jax.Array,
        context: KindContext,
        seeds: jax.Array | None,
        *,
        read: jax.Array | None = None,
        memory: Memory | None = None,
        fused: Fused | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weights, after_attention, after_mlp = (None if seeds is None else fold_in(seeds, i) for i in range(3))
        attended, new = self.attention(self.attention_norm(hidden), context, weights, read=read, memory=memory, fused=fused)
        if self.attention_output_norm is not None:
            attended = self.attention_output_norm(attended)
        before = hidden if read is None else positions_at(hidden, read)
        hidden = residual(before, dropout(attended, self.dropout_rate, after_attention))
        made = self.mlp(self.mlp_norm(hidden), after_mlp)
        if self.mlp_output_norm is not None:
            made = self.mlp_output_norm(made)
        return residual(hidden, dropout(made, self.dropout_rate, after_mlp)), new


class Decoder(nnx.Module):
    """Embeddings, layers and the norm after them, see `ftjax.models.body.Body`; a classifier reads the last token."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype) -> None:
        self.embeddings = DecoderEmbeddings(config)
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(config.num_hidden_layers)])
        self.norm = make_norm(config, config.hidden_size)
        self.kinds = tuple(dict.fromkeys(config.kinds))
        self.kind_of = tuple(self.kinds.index(kind) for kind in config.kinds)
        self.windows = tuple(kind.window for kind in self.kinds)
        self.size, self.heads, self.dtype = config.head_size, (config.num_attention_heads, config.key_value_heads), dtype
        self.softcap = config.design.attention_softcap
        self.attention: Attention = "reference"

    def embed(self, batch: Mapping[str, jax.Array], seeds: jax.Array | None) -> jax.Array:
        return self.embeddings(batch["input_ids"], token_positions(batch), seeds)

    def context(self, batch: Mapping[str, jax.Array]) -> Context:
        segments = batch.get("segment_ids")
        mask = batch["attention_mask"] if segments is None else segments
        length = mask.shape[1]
        together = True if segments is None else segments[:, :, None] == segments[:, None, :]
        here = mask[:, None] > 0 if "reads" not in batch else segment_masks(mask, batch["reads"].shape[1])
        read = jnp.where(here, jnp.arange(length, dtype=jnp.int32), 0).max(-1)
        return Context(
            self._kinds(token_positions(batch), lambda window: causal(0, length, mask, window) & together), read, mask
        )

    def layer(
        self, number: int, hidden: jax.Array, context: Context, seeds: jax.Array | None, *, readout: bool = False
    ) -> jax.Array:
        own = None if seeds is None else fold_in(seeds, number)
        kind = context.kinds[self.kind_of[number]]
        fused = self.fused(self.kind_of[number], context.segments)
        return self.layers[number](hidden, kind, own, read=context.read if readout else None, fused=fused)[0]

    def fused(self, kind: int, segments: jax.Array) -> Fused | None:
        """The kernel that does the attention of layers of a kind, if there is one for these rows here."""
        mapped = bool(jax.sharding.get_abstract_mesh().manual_axes)
        interpreted = self.attention == "interpreted"
        if not (interpreted or (self.attention == "fused" and mapped and self.dtype == jnp.bfloat16)):
            return None
        from ftjax.models import flash  # loads Pallas, for a quarter of a second

        length, options = segments.shape[1], {"segments": segments, "window": self.windows[kind], "interpret": interpreted}
        if self.softcap is None and flash.fits(length, self.size, *self.heads):
            return functools.partial(flash.flash_attention, **options)
        if splash.fits(length, self.size):
            return functools.partial(splash.splash_attention, softcap=self.softcap, **options)
        return None

    def scan(
        self,
        run: range,
        hidden: jax.Array,
        context: Context,
        seeds: jax.Array | None,
        remembered: Callable[..., Any],
    ) -> jax.Array:
        """The output of consecutive layers, what `layer` gives of one after the other, compiled once.

        run: their numbers; the parameters of all of them are in the first one, stacked (see `ftjax.stacked`), and a loop takes
        from them one layer at a time. seeds: all of them have dropout, or none. remembered: makes of a layer one that keeps
        less for the backward pass.
        """
        graph, stacked = nnx.split(self.layers[run.start])
        kinds = jax.tree.map(lambda *x: jnp.stack(x), *context.kinds)

        def one(hidden: jax.Array, state: Any, number: jax.Array, kind: jax.Array) -> jax.Array:
            alike = len(self.kinds) == 1
            chosen = context.kinds[0] if alike else jax.tree.map(lambda x: x[kind], kinds)
            fused = self.fused(0, context.segments) if alike else None  # a kernel has its window built in
            own = None if seeds is None else fold_in(seeds, number)
            return nnx.merge(graph, state)(hidden, chosen, own, fused=fused)[0]

        layers = (
            stacked,
            jnp.arange(run.start, run.stop, dtype=jnp.int32),
            jnp.asarray(self.kind_of[run.start : run.stop], jnp.int32),
        )
        step = remembered(one)
        return jax.lax.scan(lambda hidden, layer: (step(hidden, *layer), None), hidden, layers)[0]

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.norm(hidden)

    def vocabulary(self) -> jax.Array:
        return self.embeddings.word.embedding[...]

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache of this many slots without a token."""
        heads = self.layers[0].attention.key.shape[1] // self.size
        zeros = tuple(jnp.zeros((rows, slots, heads, self.size), self.dtype) for _ in self.layers)
        return Cache(zeros, zeros, jnp.zeros((rows, slots), jnp.int32), jnp.zeros((), jnp.int32))

    def extend(self, cache: Cache, input_ids: jax.Array, attention_mask: jax.Array) -> tuple[jax.Array, Cache]:
        """Hidden states of more tokens, float32 (batch, length, hidden), and the cache with them in it.

        input_ids, attention_mask: int32 (batch, length); they take the next `length` slots, which must be there.
        """
        length = input_ids.shape[1]
        before = cache.mask.sum(-1, keepdims=True, dtype=jnp.int32)
        positions = jnp.maximum(before + jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1, 0)
        mask = jax.lax.dynamic_update_slice(cache.mask, attention_mask.astype(jnp.int32), (0, cache.used))
        kinds = self._kinds(positions, lambda window: causal(cache.used, length, mask, window))
        hidden = self.embeddings(input_ids, positions, None)
        found = []
        for layer, kind, keys, values in zip(self.layers, self.kind_of, cache.keys, cache.values, strict=True):
            hidden, new = layer(hidden, kinds[kind], None, memory=Memory(keys, values, cache.used))
            found.append(new)
        keys, values = zip(*found, strict=True)
        return self.finish(hidden), Cache(keys, values, mask, cache.used + length)

    def _kinds(self, positions: jax.Array, visible: Any) -> tuple[KindContext, ...]:
        return tuple(
            KindContext(None if kind.rope is None else kind.rope.rotation(positions, self.size), visible(kind.window))
            for kind in self.kinds
        )


class NextTokenHead(nnx.Module):
    """Hidden states (..., hidden) to float32 logits (..., vocabulary) by a matrix of its own, or by the word embeddings."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype) -> None:
        own = not config.tie_word_embeddings
        self.kernel = nnx.Param(jnp.zeros((config.hidden_size, config.vocab_size))) if own else None
        self.softcap, self.dtype = config.design.logit_softcap, dtype

    def matrix(self, body: Decoder) -> jax.Array:
        """What hidden states are multiplied by, (hidden, vocabulary)."""
        return body.vocabulary().T if self.kernel is None else self.kernel[...]

    def __call__(self, hidden: jax.Array, matrix: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """tokens: int32 (n,), of which alone logits are wanted: (..., n)."""
        matrix = matrix if tokens is None else matrix[:, tokens]
        return softcap(matmul(hidden, matrix, self.dtype), self.softcap)
