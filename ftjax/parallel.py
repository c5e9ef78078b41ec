"""One pure step on one device or many: meshes, shardings and compilation."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftjax import zero
from ftjax.errors import InputError
from ftjax.zero import DATA


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the devices given or all there are."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """InputError unless every device gets the same number of rows of every microbatch."""
    unit = mesh.shape[DATA] * microbatches
    if batch_size % unit:
        raise InputError(
            f"--batch-size {batch_size} cannot be split over {mesh.shape[DATA]} devices x {microbatches} microbatches; "
            f"take a multiple of {unit}."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """The batch with its rows spread over the mesh's data axis."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def data_parallel(
    step: Callable[..., Any], mesh: Mesh, *, zero1: bool = False, dtype: str = "float32"
) -> Callable[..., tuple[Any, Any]]:
    """(state, *trees, batch) -> (state, metrics) of a step with an `axis_name`: the batch's rows are spread over the mesh.

    Each device runs the step on its rows and what must be summed is summed by the step itself, once. (Left to the
    partitioner, gradients were summed over devices in every microbatch.)
    zero1: the state lies as `place` puts it, every device keeps and updates a part; else everything is replicated.
    dtype: of the model's dot products, in which zero1 gathers the parameters.
    """

    def run(state: Any, *trees: Any) -> tuple[Any, Any]:
        devices = mesh.shape[DATA]
        lies = state_specs(state, mesh) if zero1 else PartitionSpec()
        cuts = {name: at for name, value in state.trainable.items() if (at := zero.cut(value.shape, devices)) is not None}
        options = {"axis_name": DATA} | ({"cuts": cuts, "dtype": dtype} if zero1 else {})
        return jax.shard_map(
            functools.partial(step, **options),
            mesh=mesh,
            in_specs=(lies, *[PartitionSpec()] * (len(trees) - 1), PartitionSpec(DATA)),
            out_specs=(lies, PartitionSpec()),
            check_vma=False,
        )(state, *trees)

    return run


def state_specs(state: Any, mesh: Mesh) -> Any:
    """How the arrays of a `TrainState` lie under zero1: what trains, its moments and averages in parts, the rest whole."""
    whole = jax.tree.map(lambda _: PartitionSpec(), state)
    parts = {n: zero.specs(getattr(state, n), mesh.shape[DATA], DATA) for n in ("trainable", "optimizer_state", "teacher")}
    return dataclasses.replace(whole, **parts)


def place(state: Any, mesh: Mesh, *, zero1: bool) -> Any:
    """A `TrainState` on the mesh's devices, as `data_parallel` takes it."""
    return jax.device_put(state, shardings(state, mesh, zero1=zero1))


def shardings(state: Any, mesh: Mesh, *, zero1: bool) -> Any:
    """The sharding of every array of a `TrainState`."""
    specs = state_specs(state, mesh) if zero1 else jax.tree.map(lambda _: PartitionSpec(), state)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class Compiled:
    """A step compiled once for every shape of batch it meets, with the time that took.

    step: (*trees, batch) -> anything. donate: whether the first tree's buffers are reused for the result.
    """

    def __init__(self, step: Callable[..., Any], mesh: Mesh, *, donate: bool) -> None:
        self.mesh = mesh
        self.seconds = 0.0
        self.programs: dict[tuple[Any, ...], Any] = {}
        self._jitted = jax.jit(step, donate_argnums=0 if donate else ())

    def __call__(self, *arguments: Any) -> Any:
        """Run the program for this batch's shapes; the batch is put on the devices first."""
        *trees, batch = arguments
        sharded = shard_batch(batch, self.mesh)
        return self.program(*trees, sharded)(*trees, sharded)

    def is_ready(self, batch: Any) -> bool:
        """Whether the program for this batch's shapes has been compiled."""
        return _shapes(batch) in self.programs

    def program(self, *arguments: Any) -> Any:
        """The compiled program for arguments such as these; shapes with shardings will do (see `on_mesh`)."""
        shapes = _shapes(arguments[-1])
        if shapes not in self.programs:
            start = time.perf_counter()
            self.programs[shapes] = self._jitted.lower(*arguments).compile()
            self.seconds += time.perf_counter() - start
        return self.programs[shapes]


def _shapes(batch: Any) -> tuple[Any, ...]:
    return tuple((name, value.shape) for name, value in batch.items())


def pmap_step(step: Callable[..., Any], devices: Sequence[jax.Device] | None = None) -> Callable[[Any, Any], Any]:
    """`train_step` compiled with `jax.pmap` instead of jit: (replicated state, batch) -> (replicated state, metrics).

    The state needs a leading device axis (`jax.device_put_replicated` is gone: stack it with `stack_state`); the
    batch is (batch, ...) and is split here. Numbers equal the jitted step's. jit is the main way; JAX keeps pmap in
    maintenance mode.
    """
    devices = jax.devices() if devices is None else list(devices)
    mapped = jax.pmap(functools.partial(step, axis_name=DATA), axis_name=DATA, devices=devices, donate_argnums=0)

    def run(state: Any, batch: Any) -> Any:
        split = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        state, metrics = mapped(state, split)
        return state, jax.tree.map(lambda x: x[0], metrics)

    return run


def stack_state(state: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """The state with every array repeated along a new leading axis, one copy a device, as `pmap_step` takes it."""
    number = len(jax.devices() if devices is None else devices)
    return jax.tree.map(lambda x: jax.numpy.stack([x] * number), state)
