"""Causal attention of long rows on TPUs, of what dense layers write (FlashAttention, Dao, 2023, arXiv 2307.08691).

Queries, keys and values come as (batch, length, heads x size), and what goes out is laid out so too: no head is ever moved to
a place of its own, and nothing is padded. 128 numbers lie side by side on a TPU, so a kernel works on a slab of 128 of a
token's numbers: two heads of 64, or a head of 128. (A slab of one head of 256 is as wide as that.) Of two heads in a slab,
one is set to zero before a product, which costs what a product of 64 numbers costs.

Scores are (keys, queries): what is known of each query, such as its maximum, is then a row, which is cheap to spread over
rows. A kernel goes through the tiles of so many queries and keys in which anything is seen, and no others. They are listed
beforehand, so it has no branches but those that begin and end a sum. Exponentials are of 2, queries come multiplied by log2(e).

`splash` is for what this is not made for. The reference is spelled out in `ftjax.models.decoder`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ftjax.models.layers import ATTENTION
from ftjax.models.rope import Rotation
from ftjax.models.splash import SHORTEST

LANES = 128
EDGE = 512
"""Most queries and keys of a tile."""
LONGEST = 4096
"""Tokens of a row (half, with heads of 256): the gradients of more have no room in the 16 MB beside the units."""
MASKED = -1e30
LOG2_E = math.log2(math.e)


def fits(length: int, size: int, heads: int, key_value_heads: int) -> bool:
    """Whether the kernels can do rows of this length and so many heads of this size, and should."""
    shared = heads // key_value_heads
    whole = all(number * size % max(LANES, size) == 0 for number in (heads, key_value_heads))
    together = size >= LANES or shared == 1 or shared % 2 == 0  # two heads in a slab see one of the keys', or those of one slab
    room = length * max(LANES, size) <= LONGEST * LANES
    return length >= SHORTEST and room and length % LANES == 0 and size in (64, 128, 256) and whole and together


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rotation: Rotation | None,
    segments: jax.Array,
    *,
    window: int | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """Attention to the tokens before, and itself: (batch, length, heads, size) in the dtype of `value`.

    query (batch, length, heads, size), key, value (batch, length, key-value heads, size). rotation: turns queries and keys
    first. segments: int32 (batch, length); a token sees those of its own segment alone (an attention mask will do: what padding
    sees, nobody reads). window: how many positions back a token sees, itself included; None: all. scale: of the scores.
    interpret: run the kernels on any platform, slowly.
    """
    size = query.shape[3]
    q, k, v = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    angles = None if rotation is None else over_slab(rotation, size)
    q, k = (turned(x, angles, by, size, interpret) for x, by in ((q, scale * LOG2_E), (k, 1.0)))
    # so that `remat` "dots" keeps them as they are needed: turned, not turned anew in the backward pass
    q, k = (checkpoint_name(x.astype(v.dtype), ATTENTION) for x in (q, k))
    return attended(q, k, v, segments, Shape(size, window, edge_of(q.shape[1]), interpret)).reshape(query.shape)


def edge_of(length: int) -> int:
    """The tokens of a tile's edge: as many as EDGE, or the most below that divide the row."""
    return next(n for n in range(EDGE, 0, -LANES) if length % n == 0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the kernels are made for: heads of a size, tiles of `edge` queries and as many keys."""

    size: int
    window: int | None
    edge: int
    interpret: bool

    @property
    def width(self) -> int:
        """Numbers in a slab."""
        return max(LANES, self.size)

    @property
    def heads(self) -> int:
        """Heads in a slab."""
        return self.width // self.size

    def tiles(self, length: int, *, by_query: bool) -> tuple[np.ndarray, ...]:
        """For each tile in which a query sees a key: its row of tiles (queries) and its column (keys), and whether it is the
        first and the last of its row. by_query: row after row; else column after column. int32 (tiles,) each."""
        rows, columns = np.tril_indices(length // self.edge)
        if self.window is not None:  # the first query of a tile sees the last key before it
            near = (rows - columns - 1) * self.edge + 1 < self.window
            rows, columns = rows[near], columns[near]
        if not by_query:
            order = np.lexsort((rows, columns))
            rows, columns = rows[order], columns[order]
        first = np.r_[True, rows[1:] != rows[:-1]]
        return tuple(x.astype(np.int32) for x in (rows, columns, first, np.r_[first[1:], True]))


# In all kernels: (queries, width) of queries and (keys, width) of keys and values; refs have a leading axis of 1 for the row.


def product(a: jax.Array, b: jax.Array, along: tuple[int, int]) -> jax.Array:
    """float32 product of two matrices along an axis of each."""
    return jax.lax.dot_general(a, b, (((along[0],), (along[1],)), ((), ())), preferred_element_type=jnp.float32)


def only(x: jax.Array, head: jax.Array | int, shape: Shape) -> jax.Array:
    """A slab (tokens, width) in which the other head is 0. By bits: a v5e cannot choose between numbers of 16."""
    if shape.heads == 1:
        return x
    bits = pltpu.bitcast(x, jnp.int32)
    lane = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    return pltpu.bitcast(bits & jnp.where((lane >= shape.size) == (head == 1), -1, 0), x.dtype)


def twice(x: jax.Array, head: jax.Array, shape: Shape) -> jax.Array:
    """A slab with one of its heads in the place of both."""
    bits = pltpu.bitcast(only(x, head, shape), jnp.int32)
    return pltpu.bitcast(bits | pltpu.roll(bits, shape.size, 1), x.dtype)


def seen(row: jax.Array, column: jax.Array, of_queries: jax.Array, of_keys: jax.Array, shape: Shape) -> jax.Array:
    """Which keys of a tile its queries see, bool (keys, queries). of_queries, of_keys: segments, (1, queries) and (keys, 1)."""
    key = jax.lax.broadcasted_iota(jnp.int32, (shape.edge, shape.edge), 0) + (column - row) * shape.edge
    query = jax.lax.broadcasted_iota(jnp.int32, (shape.edge, shape.edge), 1)
    found = (key <= query) & (of_queries == of_keys)
    return found if shape.window is None else found & (query - key < shape.window)


def forward_kernel(shape: Shape, group: int, *refs: Any) -> None:
    """The output (queries, width) of a row of tiles, and log2 of the sums of exponentials, a row (queries) a head.

    group: how many slabs of queries see one slab of keys.
    """
    (rows, columns, first, last), (q_ref, k_ref, v_ref, of_queries, of_keys), (out, sums_ref) = refs[:4], refs[4:9], refs[9:11]
    highest, total, mixed = refs[11:]
    tile, (k, v) = pl.program_id(2), shared_by(shape, group, pl.program_id(1), k_ref[0], v_ref[0])
    begins = first[tile] == 1

    @pl.when(begins)
    def begin() -> None:
        highest[...] = jnp.full_like(highest, MASKED)
        total[...] = jnp.zeros_like(total)

    sees = seen(rows[tile], columns[tile], of_queries[0, :1], of_keys[0][:, :1], shape)
    turned_v = v.T
    for head in range(shape.heads):
        at, features = slice(head, head + 1), pl.ds(head * shape.size, shape.size)
        scores = jnp.where(sees, product(k, only(q_ref[0], head, shape), (1, 1)), MASKED)  # (keys, queries)
        before = highest[at]
        now = jnp.maximum(before, scores.max(0, keepdims=True))
        weights, less = jnp.exp2(scores - now), jnp.exp2(before - now)
        highest[at], total[at] = now, total[at] * less + weights.sum(0, keepdims=True)
        kept = jnp.where(begins, 0.0, mixed[features] * less)
        mixed[features] = kept + product(turned_v[head * shape.size : (head + 1) * shape.size], weights.astype(v.dtype), (1, 0))

    @pl.when(last[tile] == 1)
    def end() -> None:
        sums_ref[0, 0] = highest[...] + jnp.log2(total[...])
        for head in range(shape.heads):
            features = pl.ds(head * shape.size, shape.size)
            mixed[features] = mixed[features] / total[head : head + 1]
        out[0] = mixed[...].T.astype(out.dtype)


def shared_by(shape: Shape, group: int, slab: jax.Array, *of_keys: jax.Array) -> tuple[jax.Array, ...]:
    """Slabs of keys as the heads of a slab of queries see them: two that see one head see it twice."""
    if shape.heads == 1 or group == 1:
        return of_keys
    head = head_of(shape, group, slab)
    return tuple(twice(x, head, shape) for x in of_keys)


def head_of(shape: Shape, group: int, slab: jax.Array) -> jax.Array:
    """Which head of its slab of keys a slab of queries sees."""
    return jax.lax.rem(jax.lax.div(slab * shape.heads, group), shape.heads)


def backward_kernel(shape: Shape, group: int, count: int, *refs: Any) -> None:
    """Gradients of a slab of keys and values and of the `group` slabs of queries that see it; `count` tiles each.

    With scores s, weights p = 2^(s - sums), output o and the gradient of it g: of the values pᵀ g; of the scores
    d = p (g vᵀ - Σ o g) ln 2, so of the queries d k and of the keys dᵀ q.
    """
    (rows, columns, *_), (q_ref, k_ref, v_ref, out, gradient, sums_ref) = refs[:4], refs[4:10]
    (of_queries, of_keys), (dq_ref, dk_ref, dv_ref), (dq, dk, dv) = refs[10:12], refs[12:15], refs[15:]
    member, tile = pl.program_id(2), pl.program_id(3)
    slab = pl.program_id(1) * group + member

    @pl.when(tile == 0)
    def begin() -> None:
        dq[...] = jnp.zeros_like(dq)

    @pl.when((tile == 0) & (member == 0))
    def begin_first() -> None:
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    k, v = shared_by(shape, group, slab, k_ref[0], v_ref[0])
    row, column = rows[tile], columns[tile]
    sees = seen(row, column, of_queries[0, :1], of_keys[0][:, :1], shape)
    overlap = of_head(out[0].astype(jnp.float32) * gradient[0].astype(jnp.float32), shape, k.dtype)
    of_q: Any = 0.0
    of_k: Any = 0.0
    of_v: Any = 0.0
    for head in range(shape.heads):
        q, g = only(q_ref[0], head, shape), only(gradient[0], head, shape)
        scores = product(k, q, (1, 1))  # (keys, queries)
        weights = jnp.where(sees, jnp.exp2(scores - sums_ref[0, 0, head : head + 1]), 0.0)
        d = (weights * (product(v, g, (1, 1)) - overlap[head : head + 1])).astype(k.dtype)
        of_v += product(weights.astype(k.dtype), g, (1, 0))
        of_k += product(d, q, (1, 0))
        of_q += product(d, only(k, head, shape), (0, 0))
    if shape.heads > 1 and group > 1:  # both heads of the queries see one of the keys'
        lane = jax.lax.broadcasted_iota(jnp.int32, of_k.shape, 1)
        mine = (lane >= shape.size) == (head_of(shape, group, slab) == 1)
        of_k, of_v = (jnp.where(mine, x + pltpu.roll(x, shape.size, 1), 0.0) for x in (of_k, of_v))
    queries, keys = (pl.ds(pl.multiple_of(n * shape.edge, shape.edge), shape.edge) for n in (row, column))
    dq[queries] += of_q
    dk[keys] += of_k
    dv[keys] += of_v

    @pl.when(tile == count - 1)
    def end() -> None:
        dq_ref[0] = (dq[...] * math.log(2)).astype(dq_ref.dtype)

    @pl.when((tile == count - 1) & (member == group - 1))
    def end_last() -> None:
        dk_ref[0] = (dk[...] * math.log(2)).astype(dk_ref.dtype)
        dv_ref[0] = dv[...].astype(dv_ref.dtype)


def of_head(x: jax.Array, shape: Shape, dtype: jnp.dtype) -> jax.Array:
    """Sums of a slab (tokens, width) over each head's numbers, float32 (8, tokens): a row a head.

    A product with ones sums in one go, of bfloat16 in two: of what fits, and of the rest.
    """
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, (8, shape.width), axis) for axis in (0, 1))
    ones = jnp.where((lane >= row * shape.size) & (lane < (row + 1) * shape.size), 1.0, 0.0).astype(dtype)
    coarse = x.astype(dtype)
    found = product(ones, coarse, (1, 1))
    return found if dtype == x.dtype else found + product(ones, (x - coarse.astype(x.dtype)).astype(dtype), (1, 1))


def spread(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segments (batch, length) where a kernel finds those of queries in a row, and those of keys in a column."""
    rows, length = segments.shape
    of_keys = jnp.broadcast_to(segments[:, :, None], (rows, length, LANES))
    return jnp.broadcast_to(segments[:, None], (rows, 8, length)), of_keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attended(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shape: Shape) -> jax.Array:
    """Attention of turned and scaled queries, (batch, length, heads x size), to keys and values."""
    return forward(q, k, v, segments, shape)[0]


def forward(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shape: Shape) -> tuple[jax.Array, jax.Array]:
    """The output, and log2 of the sums of exponentials, float32 (batch, slabs, 8, length), of which a row a head counts."""
    (batch, length, numbers), slabs = q.shape, q.shape[2] // shape.width
    group = numbers // k.shape[2]
    tiles = shape.tiles(length, by_query=True)

    def of_slab(b: Any, s: Any, t: Any, rows: Any, *_: Any) -> tuple[Any, ...]:
        return b, rows[t], s

    def of_keys(b: Any, s: Any, t: Any, _: Any, columns: Any, *__: Any) -> tuple[Any, ...]:
        return b, columns[t], jax.lax.div(s, group)

    slab = (1, shape.edge, shape.width)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(tiles),
        grid=(batch, slabs, len(tiles[0])),
        in_specs=[
            pl.BlockSpec(slab, of_slab),
            pl.BlockSpec(slab, of_keys),
            pl.BlockSpec(slab, of_keys),
            pl.BlockSpec((1, 8, shape.edge), lambda b, s, t, rows, *_: (b, 0, rows[t])),
            pl.BlockSpec((1, shape.edge, LANES), lambda b, s, t, _, columns, *__: (b, columns[t], 0)),
        ],
        out_specs=[
            pl.BlockSpec(slab, of_slab),
            pl.BlockSpec((1, 1, 8, shape.edge), lambda b, s, t, rows, *_: (b, s, 0, rows[t])),
        ],
        scratch_shapes=[pltpu.VMEM(size, jnp.float32) for size in (*[(8, shape.edge)] * 2, (shape.width, shape.edge))],
    )
    return pl.pallas_call(
        functools.partial(forward_kernel, shape, group),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(q.shape, v.dtype), jax.ShapeDtypeStruct((batch, slabs, 8, length), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=shape.interpret,
        name="flash_forward",
    )(*map(jnp.asarray, tiles), q, k, v, *spread(segments))


Kept = tuple[jax.Array, ...]


def _attended(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shape: Shape) -> tuple[jax.Array, Kept]:
    out, sums = (checkpoint_name(x, ATTENTION) for x in forward(q, k, v, segments, shape))
    return out, (q, k, v, out, sums, segments)


def _back(shape: Shape, kept: Kept, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, out, sums, segments = kept
    (batch, length, _), group = q.shape, q.shape[2] // k.shape[2]
    tiles = shape.tiles(length, by_query=False)

    def of_slab(b: Any, n: Any, s: Any, t: Any, rows: Any, *_: Any) -> tuple[Any, ...]:
        return b, rows[t], n * group + s

    def of_keys(b: Any, n: Any, s: Any, t: Any, _: Any, columns: Any, *__: Any) -> tuple[Any, ...]:
        return b, columns[t], n

    slab, whole = (1, shape.edge, shape.width), (1, length, shape.width)
    buffers = 2 if length * shape.width <= LONGEST * LANES // 2 else 1  # of results: written while more is computed, or not
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(tiles),
        grid=(batch, k.shape[2] // shape.width, group, len(tiles[0])),
        in_specs=[
            *(pl.BlockSpec(slab, where) for where in (of_slab, of_keys, of_keys, of_slab, of_slab)),
            pl.BlockSpec((1, 1, 8, shape.edge), lambda b, n, s, t, rows, *_: (b, n * group + s, 0, rows[t])),
            pl.BlockSpec((1, 8, shape.edge), lambda b, n, s, t, rows, *_: (b, 0, rows[t])),
            pl.BlockSpec((1, shape.edge, LANES), lambda b, n, s, t, _, columns, *__: (b, columns[t], 0)),
        ],
        out_specs=[
            pl.BlockSpec(whole, lambda b, n, s, *_: (b, 0, n * group + s), pipeline_mode=pl.Buffered(buffers)),
            *[pl.BlockSpec(whole, lambda b, n, *_: (b, 0, n), pipeline_mode=pl.Buffered(buffers))] * 2,
        ],
        scratch_shapes=[pltpu.VMEM(whole[1:], jnp.float32)] * 3,
    )
    found = pl.pallas_call(
        functools.partial(backward_kernel, shape, group, len(tiles[0])),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        interpret=shape.interpret,
        name="flash_backward",
    )(*map(jnp.asarray, tiles), q, k, v, out, gradient.astype(v.dtype), sums, *spread(segments))
    return (*found, None)


attended.defvjp(_attended, _back)

Angles = tuple[jax.Array, jax.Array]


def over_slab(rotation: Rotation, size: int) -> Angles:
    """Cosines, and sines as they are added, of every number of a slab: float32 (batch, length, width) each."""
    cos, sin = (part.astype(jnp.float32) for part in rotation)
    many = max(1, LANES // size)
    return jnp.tile(jnp.concatenate([cos, cos], -1), (1, 1, many)), jnp.tile(jnp.concatenate([-sin, sin], -1), (1, 1, many))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def turned(x: jax.Array, angles: Angles | None, by: float, size: int, interpret: bool) -> jax.Array:
    """`rope.rotate` of (batch, length, heads x size), multiplied by a number, in float32; the dtype stays."""
    if angles is None:
        return (x.astype(jnp.float32) * by).astype(x.dtype)
    width, (batch, length, numbers) = angles[0].shape[2], x.shape
    edge = edge_of(length)
    slab, angle = (pl.BlockSpec((1, edge, width), lambda b, i, s, on=on: (b, i, s * on)) for on in (1, 0))

    def kernel(x_ref: Any, cos: Any, sin: Any, out: Any) -> None:
        value = x_ref[0].astype(jnp.float32)
        before, behind = (pltpu.roll(value, n, 1) for n in (size // 2, width - size // 2))
        lane = jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
        swapped = jnp.where((lane & (size - 1)) < size // 2, behind, before)
        out[0] = ((value * cos[0] + swapped * sin[0]) * by).astype(out.dtype)

    return pl.pallas_call(
        kernel,
        grid=(batch, length // edge, numbers // width),
        in_specs=[slab, angle, angle],
        out_specs=slab,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
        name="flash_turn",
    )(x, *angles)


def _turned(x: jax.Array, angles: Angles | None, *how: Any) -> tuple[jax.Array, Angles | None]:
    return turned(x, angles, *how), angles


def _turn_back(by: float, size: int, interpret: bool, angles: Angles | None, gradient: jax.Array) -> tuple[Any, None]:
    back = None if angles is None else (angles[0], -angles[1])
    return turned(gradient, back, by, size, interpret), None


turned.defvjp(_turned, _turn_back)
