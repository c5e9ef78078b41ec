"""ZeRO (Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054): a device keeps and updates a part of it all.

Of every large matrix that trains, a device of n holds 1/n of the float32 values and of the optimizer's moments. Values are
gathered (in the compute dtype: a dot product reads no more), and gradients summed so that each device gets the sum of its
own part alone. That moves as many bytes as summing whole gradients does, fewer where the compute dtype is narrower, and the
update costs 1/n. Vectors and other small arrays stay whole on every device.

Stage 1, over the axis `data`: everything is gathered once, at the beginning of a step (`gather`), and gradients are summed
once, at its end (`scatter`). Stage 3, over `fsdp`: a parameter is gathered when a layer reads it, in the backward pass
again, and frozen ones are in parts too (`Part`); no device ever holds more than a few layers. Gradients are then summed
in every microbatch, since nobody has room for whole ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.sharding import DATA, FSDP
from ftjax.stacked import is_stack

Cuts = Mapping[str, int]
"""Parameter name -> the dimension that is cut; names that are not there stay whole."""


def part_axis() -> str:
    """The axis over which parameters are in parts, within a mapped step."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return FSDP if sizes.get(FSDP, 1) > 1 else DATA


def gather(params: Mapping[str, jax.Array], cuts: Cuts, axis_name: str | None, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Whole parameters from every device's part, float32; those that are cut have been rounded to `dtype` on the way."""

    def whole(name: str, value: jax.Array) -> jax.Array:
        if name not in cuts:
            return value
        return jax.lax.all_gather(value.astype(dtype), axis_name, axis=cuts[name], tiled=True).astype(value.dtype)

    return {name: whole(name, value) for name, value in params.items()}


DIRECT = 8
"""Among so many devices at most are parts of a sum sent to where they belong; over more the ways get long."""


def summed(gradient: jax.Array, axis_name: str | None, dimension: int, dtype: str) -> jax.Array:
    """This device's part, along a dimension, of a gradient's sum over devices, sent in `dtype`; in the gradient's own dtype.

    Everywhere a reduce-scatter, but of bfloat16 among few chips of a TPU: its compiler lets nothing else run meanwhile, whereas
    it hides an exchange (`ftjax.parallel.TPU_OPTIONS`) behind what is computed. The chips then add, in the gradient's dtype,
    what they got. Of float32 too much would be sent, and copied: BERT-base, 8 chips, 24.3 ms a step instead of 21.0, predicted.
    """
    ways = (scattered, exchanged)
    add, send = (functools.partial(way, axis_name=axis_name, dimension=dimension, dtype=dtype) for way in ways)
    if jnp.dtype(dtype) == gradient.dtype or jax.lax.axis_size(axis_name) > DIRECT:
        return add(gradient)
    return jax.lax.platform_dependent(gradient, tpu=send, default=add)


def scattered(gradient: jax.Array, axis_name: str | None, dimension: int, dtype: str) -> jax.Array:
    """See `summed`: added on the way, in `dtype`."""
    narrow = gradient.astype(dtype)
    return jax.lax.psum_scatter(narrow, axis_name, scatter_dimension=dimension, tiled=True).astype(gradient.dtype)


def exchanged(gradient: jax.Array, axis_name: str | None, dimension: int, dtype: str) -> jax.Array:
    """See `summed`: every device sends every other its part, which adds them.

    One by one, each widened alone, not as a sum over an axis: the compiler then does all that in the instruction that reads the
    sum, in half of the time.
    """
    number = jax.lax.axis_size(axis_name)
    shape = (*gradient.shape[:dimension], number, -1, *gradient.shape[dimension + 1 :])
    mine = gradient.astype(dtype).reshape(shape)
    parts = jax.lax.all_to_all(mine, axis_name, split_axis=dimension, concat_axis=dimension)
    each = (jax.lax.index_in_dim(parts, i, dimension, keepdims=False).astype(gradient.dtype) for i in range(number))
    return functools.reduce(jnp.add, each)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def whole(part: jax.Array, dimension: int, dtype: str, reduce_dtype: str = "float32") -> jax.Array:
    """An array from every device's part of it, rounded to `dtype` on the way; backwards each device gets its part of the sum,
    which is of gradients in `reduce_dtype`.
    """
    return _gathered(part, dimension, dtype)


def _gathered(part: jax.Array, dimension: int, dtype: str) -> jax.Array:
    narrow = part.astype(dtype) if jnp.issubdtype(part.dtype, jnp.floating) else part
    return jax.lax.all_gather(narrow, part_axis(), axis=dimension, tiled=True).astype(part.dtype)


def _scatter(dimension: int, dtype: str, reduce_dtype: str, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (summed(gradient, part_axis(), dimension, reduce_dtype),)


whole.defvjp(lambda part, dimension, dtype, _: (_gathered(part, dimension, dtype), None), _scatter)  # seen by the policy below


def all_but_gathered(primitive: Any, *inputs: Any, **options: Any) -> bool:
    """A policy of `jax.checkpoint`: keep for the backward pass all that is computed, but not what has been gathered.

    Nor what only widens another array, as what was gathered is: the narrow one will do.
    """
    if primitive.name == "convert_element_type":
        return jnp.dtype(options["new_dtype"]).itemsize <= inputs[0].dtype.itemsize
    return primitive.name != "all_gather"


class Part(nnx.Param):
    """A module's parameter of which this device holds a part: reading it (`[...]`) gathers it.

    Metadata: `cut`, the dimension; `rounded`, the dtype in which it is gathered; `summed`, that of gradients.
    """

    def get_value(self, **index: Any) -> jax.Array:
        """The whole array."""
        part = super().get_value(**index)
        return whole(part, *map(self.get_metadata, ("cut", "rounded", "summed")))


def parameter(value: Any, shape: tuple[int, ...], dtype: str, reduce_dtype: str) -> nnx.Param:
    """A module's parameter: a `Part` where the value is a part of an array of this shape, or of a stack of such arrays."""
    own = () if value is None else value.shape[value.ndim - len(shape) :]
    if value is None or own == shape:
        return nnx.Param(value)
    dimension = next(i for i, (part, length) in enumerate(zip(own, shape, strict=True)) if part != length)
    return Part(value, cut=dimension, rounded=dtype, summed=reduce_dtype)


def lookup(columns: jax.Array, ids: jax.Array, dtype: str, reduce_dtype: str) -> jax.Array:
    """Rows of a table, float32 (batch, length, features), of which every device of `part_axis` holds some columns.

    They have been rounded to `dtype` on the way, as matrices that are gathered are; their gradients to `reduce_dtype`.

    ids: int (batch, length), this device's rows of the batch. All devices look up everyone's ids in their columns and
    exchange what they find. Backwards the same exchange brings each its own part of every row's gradient: at
    128 tokens a row and 32 rows a device, a hundredth of the bytes of the gradient of a table of 30,522 words.
    """
    axis = part_axis()
    found = columns[jax.lax.all_gather(ids, axis, tiled=True)]
    return _exchange(found.astype(jnp.float32), axis, dtype, reduce_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _exchange(found: jax.Array, axis: str, dtype: str, reduce_dtype: str) -> jax.Array:
    """Everyone's rows, of which this device has some columns, to its own rows whole; backwards the reverse."""
    rows = jax.lax.all_to_all(found.astype(dtype), axis, split_axis=0, concat_axis=found.ndim - 1, tiled=True)
    return rows.astype(jnp.float32)


def _exchange_back(axis: str, dtype: str, reduce_dtype: str, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    narrow = gradient.astype(reduce_dtype)
    columns = jax.lax.all_to_all(narrow, axis, split_axis=gradient.ndim - 1, concat_axis=0, tiled=True)
    return (columns.astype(jnp.float32),)


_exchange.defvjp(lambda found, *how: (_exchange(found, *how), None), _exchange_back)


def scatter(gradients: Mapping[str, jax.Array], cuts: Cuts, axis_name: str | None, dtype: str) -> dict[str, jax.Array]:
    """Sums over devices, sent in `dtype`, of gradients that are all cut: of each only this device's part, float32.

    A stack of layers is complete at the end of the backward pass only, where nothing is left to hide it behind.
    """

    def add(name: str, value: jax.Array) -> jax.Array:
        way = scattered if is_stack(name) else summed
        return way(value, axis_name, cuts[name], dtype)

    return {name: add(name, value) for name, value in gradients.items()}


def norm(gradients: Mapping[str, jax.Array], cuts: Cuts, axis_name: str | None) -> jax.Array:
    """The global norm of summed gradients of which this device has its parts: a float32 scalar."""
    parts = jnp.asarray(sum(jnp.square(value).sum() for name, value in gradients.items() if name in cuts), jnp.float32)
    whole = [value.ravel() for name, value in gradients.items() if name not in cuts]  # many and small: one sum, not hundreds
    return jnp.sqrt(jax.lax.psum(parts, axis_name) + (jnp.square(jnp.concatenate(whole)).sum() if whole else 0.0))
