"""Layers shared by the architectures: dense, embedding, layer norm, attention, activations.

Modules declare parameters of the right shape and hold nothing else; values come from a checkpoint or from
`ftjax.pretrained`. Randomness is an argument (`seeds`, see `ftjax.random`), never state.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ftjax import zero
from ftjax.models import nf4
from ftjax.models.dots import dot, matmul, matmul_4bit, products, weighted
from ftjax.random import dropout, fold_in

DENSE, ATTENTION = "dense", "attention"
"""What outputs of dense layers and of fused attention are called, for those who choose what is kept for the backward pass."""
FLOAT32 = jnp.dtype(jnp.float32)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) of float32 x, exactly (Hendrycks & Gimpel, 2016), by erf as PyTorch has it; its derivative is kept for later.

    `jax.nn.gelu` goes through erfc and computes it twice; on a CPU this one is about twice as fast.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * cumulative, cumulative + x * density


gelu.defvjp(_gelu_forward, lambda derivative, g: (g * derivative,))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": jax.nn.gelu,  # the approximation by tanh
    "gelu_fast": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""The activation functions by the names that Hugging Face configs use."""


def low_rank_weight(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """W + s A B, float32 (features_in, features_out)."""
    return kernel.astype(jnp.float32) + scale * dot("ir,ro->io", a, b, jnp.dtype(jnp.float32))


def column_norms(weight: jax.Array) -> jax.Array:
    """Of every output feature's weights: (features_in, features_out) to float32 (features_out,)."""
    return jnp.sqrt((weight * weight).sum(0))


class Dense(nnx.Module):
    """x (..., features_in) to float32 (..., features_out): x W + b.

    With LoRA beside W (Hu et al., 2021, https://arxiv.org/abs/2106.09685): x W + s x̃ A B + b, where x̃ is x after LoRA's own
    dropout. With DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353): x W + (g - 1) x̃ W + g s x̃ A B + b, where
    g = m / ‖W + s A B‖, column by column, and the norm counts as constant when gradients are taken (their section 4.3).

    bias: whether there is one. narrow: the result has the dtype of x, so that the backward pass keeps less; for
    decoders, as the TPU's compiler makes a slower step of encoders so (docs/performance.md). Seeds turn LoRA's dropout on.
    """

    def __init__(
        self, features_in: int, features_out: int, dtype: jnp.dtype, *, bias: bool = True, narrow: bool = False
    ) -> None:
        self.kernel = nnx.Param(jnp.zeros((features_in, features_out)))
        self.bias = nnx.Param(jnp.zeros((features_out,))) if bias else None
        self.shape, self.dtype, self.narrow = (features_in, features_out), dtype, narrow
        self.in_4bit, self.lora_scale, self.lora_dropout, self.dora = False, 0.0, 0.0, False

    def keep_in_4bit(self) -> None:
        """The kernel in 4 bits, which does not train."""
        codes, scales = nf4.shapes_of(*self.shape)
        del self.kernel
        self.kernel_codes = nnx.Param(jnp.zeros(codes, jnp.uint8))
        self.kernel_scales = nnx.Param(jnp.zeros(scales))
        self.in_4bit = True

    def add_lora(self, rank: int, scale: float, *, dropout: float, dora: bool, seed: int) -> None:
        """Two small matrices beside the kernel, and with DoRA a magnitude for each output feature.

        seed: tells this layer's dropout from that of others which are given the same seeds.
        """
        features_in, features_out = self.shape
        self.lora_a = nnx.Param(jnp.zeros((features_in, rank)))
        self.lora_b = nnx.Param(jnp.zeros((rank, features_out)))
        if dora:
            self.lora_magnitude = nnx.Param(jnp.zeros((features_out,)))
        self.lora_scale, self.lora_dropout, self.lora_seed, self.dora = scale, dropout, seed, dora

    def base(self, after: jax.Array | None = None) -> jax.Array:
        """W, as it is kept, or taken out of 4 bits (after something else has been computed)."""
        if not self.in_4bit:
            return self.kernel[...]
        codes = self.kernel_codes[...]
        return nf4.dequantize(codes if after is None else nf4.after(after, codes), self.kernel_scales[...])

    def weight(self) -> jax.Array:
        """The matrix that x is multiplied by where no dropout comes between, float32 (features_in, features_out)."""
        if not self.lora_scale:
            return self.base().astype(jnp.float32)
        weight = low_rank_weight(self.base(), self.lora_a[...], self.lora_b[...], self.lora_scale)
        return weight * jnp.broadcast_to(self.gain(), weight.shape) if self.dora else weight

    def gain(self, after: jax.Array | None = None) -> jax.Array:
        """DoRA's g, float32 (features_out,)."""
        a, b = jax.lax.stop_gradient((self.lora_a[...], self.lora_b[...]))
        return self.lora_magnitude[...] / column_norms(low_rank_weight(self.base(after), a, b, self.lora_scale))

    def times_base(self, x: jax.Array) -> jax.Array:
        """x W."""
        if self.in_4bit:
            return matmul_4bit(x, self.kernel_codes[...], self.kernel_scales[...], self.dtype)
        return matmul(x, self.kernel[...], self.dtype)

    def __call__(self, x: jax.Array, seeds: jax.Array | None = None) -> jax.Array:
        y = self.times_base(x)
        if self.lora_scale:
            dropped = dropout(x, self.lora_dropout, None if seeds is None else fold_in(seeds, self.lora_seed))
            low = self.lora_scale * matmul(matmul(dropped, self.lora_a[...], self.dtype), self.lora_b[...], self.dtype)
            if self.dora:
                gain = jnp.broadcast_to(self.gain(x), y.shape)
                y += (gain - 1.0) * (y if dropped is x else self.times_base(dropped)) + gain * low
            else:
                y += low
        if self.bias is not None:
            y += jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)
        return checkpoint_name(y.astype(x.dtype) if self.narrow else y, DENSE)


class Embedding(nnx.Module):
    """Integer ids (...) to float32 rows (..., features) of a table (size, features).

    A table of fewer columns is this device's part, see `ftjax.zero.lookup`.
    """

    def __init__(self, size: int, features: int) -> None:
        self.embedding = nnx.Param(jnp.zeros((size, features)))
        self.features = features

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.embedding.get_raw_value()
        if table.shape[1] < self.features:
            return zero.lookup(table, ids, *map(self.embedding.get_metadata, ("rounded", "summed")))
        table = self.embedding[...]
        found = chosen(table, ids) if table.shape[0] <= FEW else table[ids]
        return found.astype(jnp.float32)


FEW = 4
"""Of so many rows at most each is a case of its own; more are looked up in memory, and their gradients added up there."""


def chosen(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows (..., features) of a table (size, features) by ids (...), each below its size.

    The same as looking them up, but computed with whatever reads them: 0.08 ms of a BERT-base step of 18, predicted for v5e.
    """
    shape = (*ids.shape, table.shape[1])
    found = jnp.broadcast_to(table[0], shape)
    for i in range(1, table.shape[0]):
        found = jnp.where((ids == i)[..., None], jnp.broadcast_to(table[i], shape), found)
    return found


def residual(hidden: jax.Array, update: jax.Array) -> jax.Array:
    """hidden + update, added in float32, in the dtype of the hidden state."""
    return (hidden.astype(jnp.float32) + update.astype(jnp.float32)).astype(hidden.dtype)


class LayerNorm(nnx.Module):
    """Normalise the last axis of x (..., features) in float32, then scale and shift (Ba et al., 2016). The dtype stays.

    once: x is read once, for mean and variance together, as it always is where it comes in bfloat16. That loses less, where
    the mean is large, than x or the result lose by being rounded.
    """

    def __init__(self, features: int, epsilon: float, *, once: bool = False) -> None:
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))
        self.epsilon, self.once = epsilon, once

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype, x = x.dtype, x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        if self.once or dtype != jnp.float32:
            variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0.0)
        else:
            variance = (centred * centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (jnp.broadcast_to(p[...].astype(jnp.float32), x.shape) for p in (self.scale, self.bias))
        return (normal * scale + bias).astype(dtype)


class RMSNorm(nnx.Module):
    """Divide the last axis of x (..., features) by its root mean square in float32, then scale (Zhang & Sennrich, 2019).

    The dtype stays. offset: added to the scale; 1 where files keep its distance from one, as Gemma's do.
    """

    def __init__(self, features: int, epsilon: float, offset: float = 0.0) -> None:
        self.scale = nnx.Param(jnp.ones((features,)))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype, x = x.dtype, x.astype(jnp.float32)
        normal = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (normal * jnp.broadcast_to(self.scale[...].astype(jnp.float32) + self.offset, x.shape)).astype(dtype)


def distance_buckets(number: int, *, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance 0, 1, ..., number - 1 between two tokens, int32 (number,): half of the buckets are one
    distance each, the others grow as powers do up to max_distance, and the last holds all beyond (Raffel et al., 2020).

    In float32 and in PyTorch's order of operations: a distance on the edge of two buckets falls where it does there.
    """
    exact = buckets // 2
    distance = np.arange(number)
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    return np.where(distance < exact, distance, np.minimum(exact + steps.astype(np.int32), buckets - 1)).astype(np.int32)


def relative_buckets(queries: int, keys: int, *, buckets: int, max_distance: int, causal: bool = False) -> jax.Array:
    """The bucket of the way from every query to every key, int32 (queries, keys), see `distance_buckets`.

    Half of the buckets are for keys that come after the query; where attention is causal all are for those before.
    """
    way = jnp.arange(keys, dtype=jnp.int32)[None, :] - jnp.arange(queries, dtype=jnp.int32)[:, None]
    own = buckets if causal else buckets // 2
    by_distance = jnp.asarray(distance_buckets(max_distance + 1, buckets=own, max_distance=max_distance))
    distance = jnp.maximum(-way, 0) if causal else jnp.abs(way)
    found = by_distance[jnp.minimum(distance, max_distance)]  # the last bucket holds all beyond
    return found if causal else found + (way > 0).astype(jnp.int32) * own


def attention_bias(attention_mask: jax.Array) -> jax.Array:
    """Mask (batch, keys), 1 for tokens and 0 for padding, to an additive float32 (batch, 1, 1, keys).

    Padding gets the lowest finite number, not minus infinity: a row that is all padding then stays finite.
    """
    return _bias(attention_mask[:, None, None, :] > 0)


def segment_bias(segment_ids: jax.Array) -> jax.Array:
    """Segments (batch, length), which see only themselves, to an additive float32 (batch, 1, length, length)."""
    return _bias(segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def _bias(seen: jax.Array) -> jax.Array:
    return jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    *,
    dropout_rate: float,
    seeds: jax.Array | None,
    dtype: jnp.dtype,
    kept: jnp.dtype = FLOAT32,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017). kept: of scores and weights, the largest arrays there are.

    query (batch, queries, heads, head_size), key and value (batch, keys, heads, head_size), bias broadcast to
    (batch, heads, queries, keys); float32 (batch, queries, heads, head_size) comes back.
    """
    scores = products(query, key, dtype).astype(kept)
    weights = attention_weights(scores, query.shape[-1], bias, dropout_rate, seeds)
    return weighted(weights, value, dtype)


def attention_weights(
    scores: jax.Array, head_size: int, bias: jax.Array, dropout_rate: float, seeds: jax.Array | None
) -> jax.Array:
    """Products of queries and keys, (batch, heads, queries, keys), to the weights of the values: same shape and dtype."""
    lowest = float(jnp.finfo(scores.dtype).min)  # the lowest float32 would become infinite
    bias = jnp.maximum(bias, lowest).astype(scores.dtype)
    weights = jax.nn.softmax(scores * head_size**-0.5 + jnp.broadcast_to(bias, scores.shape), axis=-1)
    return dropout(weights, dropout_rate, seeds)


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Positions counted anew within each segment of a row, int32 (batch, length): 0, 1, 2, 0, 1, ..."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(segment_ids != before, index, 0), axis=1)


def segment_masks(segment_ids: jax.Array, number: int) -> jax.Array:
    """Of (batch, length) which positions are of each of the first segments, bool (batch, number, length)."""
    return segment_ids[:, None, :] == jnp.arange(1, number + 1, dtype=jnp.int32)[None, :, None]


def positions_at(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x (batch, length, ...) at some positions of each row, (batch, n): (batch, n, ...)."""
    return jnp.take_along_axis(x, positions.reshape(*positions.shape, *(1,) * (x.ndim - 2)), axis=1)


def mean_pool(hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Mean over the tokens with mask 1: hidden (batch, length, hidden) to float32 (batch, hidden), 0 where there is none."""
    weight = attention_mask.astype(jnp.float32)[..., None]
    return (weight * hidden.astype(jnp.float32)).sum(1) / jnp.maximum(weight.sum(1), 1.0)
