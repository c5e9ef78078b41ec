"""One pure step on one device or many: how it is mapped over a mesh, and compiled."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax import zero
from ftjax.errors import InputError
from ftjax.sharding import DATA, ROWS, Layout
from ftjax.step import gradients, updated


def check_batch_size(batch_size: int, microbatches: int, shards: int) -> None:
    """InputError unless every device that splits the batch gets the same number of rows of every microbatch."""
    unit = shards * microbatches
    if batch_size % unit:
        raise InputError(
            f"--batch-size {batch_size} cannot be split over {shards} devices x {microbatches} microbatches; "
            f"take a multiple of {unit}."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """The batch with its rows spread over the axes `ROWS` of the mesh. Each process gives its own, see `Layout.own_rows`."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    return jax.tree.map(lambda value: value if isinstance(value, jax.Array) else put(value), batch)


def parallel_step(
    layout: Layout, *, dtype: str = "float32", reduce_dtype: str = "float32"
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """`train_step` for a state that lies as `layout.place` puts it and a batch whose rows are spread over the mesh.

    Gradients are mapped over data and fsdp explicitly: each device has its rows, and what must be summed is summed in
    `ftjax.step.gradients`, once. (Left to the partitioner, gradients were summed over devices in every microbatch.) The
    update is left to the partitioner: its arrays lie alike, so any optimizer is right, and nothing moves for an elementwise
    one. With a tensor axis all is: it splits heads and features as their matrices are split.
    dtype: of the model's dot products, in which parameters are gathered. reduce_dtype: in which gradients that every device
    gets a part of are summed.
    """

    def mapped(state: Any, batch: Any) -> tuple[Any, Any]:
        specs = layout.specs(state)
        cuts = layout.cuts(state.trainable)
        without = {"optimizer_state": ()}
        return jax.shard_map(
            functools.partial(gradients, axes=layout.rows, part=layout.part, cuts=cuts, dtype=dtype, reduce_dtype=reduce_dtype),
            mesh=layout.mesh,
            in_specs=(dataclasses.replace(specs, **without), PartitionSpec(ROWS)),
            out_specs=(PartitionSpec(), specs.trainable),
            check_vma=False,
        )(dataclasses.replace(state, **without), batch)

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = updated(state, *(gradients if layout.tensor > 1 else mapped)(state, batch))
        return jax.lax.with_sharding_constraint(new, layout.shardings(new)), metrics

    return run


def pmap_step(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None, *, trees: int = 1
) -> Callable[..., tuple[Any, Any]]:
    """`train_step` compiled with `jax.pmap` instead of jit: (replicated state, batch) -> (replicated state, metrics).

    The state lies whole on every device (see `replicate`; its buffers are reused for the result) and stays so: pmap takes
    and gives it unmapped, and only the batch, (batch, ...) split by `split_batch`, has a leading axis for the devices.
    Random bits belong to examples, so each device draws its own. Numbers equal the jitted step's. jit is the main way; JAX
    keeps pmap in maintenance mode.

    step: takes `axis_name`, as `train_step` does. trees: how many arguments come before the batch.
    """
    return jax.pmap(
        functools.partial(step, axis_name=DATA),
        axis_name=DATA,
        devices=devices,
        in_axes=(*(None,) * trees, 0),
        out_axes=None,
        donate_argnums=0,
    )


def split_batch(batch: Any, devices: int) -> Any:
    """(batch, ...) arrays to (devices, batch / devices, ...), as `pmap_step` takes them."""
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


TPU_OPTIONS = {"xla_tpu_enable_async_all_to_all": True}
"""Lets `ftjax.zero.exchanged` run beside what is computed. Slices without links from end to end, such as v5e:4x8, cannot."""


def compiled(lowered: Any, platform: str, devices: int) -> Any:
    """The program of what has been lowered; for a few chips of a TPU with `TPU_OPTIONS`, where their compiler takes those."""
    if platform == "tpu" and devices <= zero.DIRECT:
        try:
            return lowered.compile(compiler_options=TPU_OPTIONS)
        except jax.errors.JaxRuntimeError as error:
            if not any(name in str(error) for name in (*TPU_OPTIONS, "Async all-to-all not supported")):
                raise
    return lowered.compile()


class Compiled:
    """A step compiled once for every shape of batch it meets, with the time that took.

    step: (*trees, batch) -> anything, or with `pmapped` what `pmap_step` gives. donate: whether the first tree's buffers
    are reused for the result. gather: whether the result lies whole on every device.

    seconds: how long compiling took. meanwhile: called once, when a program has been traced and is about to be
    compiled, which leaves Python, and for some of the time all cores but one, idle.
    """

    def __init__(
        self, step: Callable[..., Any], mesh: Mesh, *, donate: bool, pmapped: bool = False, gather: bool = False
    ) -> None:
        self.mesh, self.pmapped = mesh, pmapped
        self.seconds = 0.0
        self.meanwhile: Callable[[], None] | None = None
        self.programs: dict[tuple[Any, ...], Any] = {}
        self._ready: set[tuple[Any, ...]] = set()
        whole = {"out_shardings": NamedSharding(mesh, PartitionSpec())} if gather else {}
        self._jitted: Any = step if pmapped else jax.jit(step, donate_argnums=0 if donate else (), **whole)

    def __call__(self, *arguments: Any) -> Any:
        """Run the program for this batch's shapes; the batch is put on the devices first."""
        *trees, batch = arguments
        sharded = split_batch(batch, self.mesh.size) if self.pmapped else shard_batch(batch, self.mesh)
        program = self.program(*trees, sharded)
        self._ready.add(_rows(batch))
        return program(*trees, sharded)

    def is_ready(self, batch: Any) -> bool:
        """Whether a program for rows such as this batch's has been compiled."""
        return _rows(batch) in self._ready

    def program(self, *arguments: Any) -> Any:
        """The compiled program for arguments such as these; shapes with shardings will do."""
        shapes = tuple((name, value.shape) for name, value in arguments[-1].items())
        if shapes not in self.programs:
            start = time.perf_counter()
            lowered = self._jitted.lower(*arguments)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            self.programs[shapes] = compiled(lowered, self.mesh.devices.flat[0].platform, self.mesh.size)
            self.seconds += time.perf_counter() - start
        return self.programs[shapes]


def _rows(batch: Any) -> tuple[Any, ...]:
    """The shape of a row, however many a process or a device has."""
    return tuple((name, value.shape[1:]) for name, value in batch.items())
