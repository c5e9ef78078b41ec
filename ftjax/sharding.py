"""Where arrays lie: the axes of a mesh of devices, and which dimension of a parameter is cut over which of them.

data    rows of the batch; parameters are whole, or for zero1 in parts that are gathered once a step
fsdp    rows of the batch too; parameters are in parts, gathered layer by layer (ZeRO, stage 3)
tensor  the same rows; features and heads within a layer are split (Shoeybi et al., 2019, Megatron-LM)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftjax.errors import InputError, did_you_mean
from ftjax.stacked import is_stack, members

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)
"""The axes over which a batch is split."""

SMALLEST = 2**16
"""Arrays of fewer numbers stay whole: there is nothing to gain, and every cut array is a message of its own."""

KERNEL = "kernel(_codes|_scales)?"  # also where it is kept in 4 bits
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embeddings\.word\.embedding", (TENSOR, FSDP)),  # by columns: devices look up each other's tokens, see zero.lookup
    (rf"(query|key|value|gate|up)\.({KERNEL}|lora_b)", (FSDP, TENSOR)),
    (rf"(output|down)\.({KERNEL}|lora_a)", (TENSOR, FSDP)),
    (r"lm_head\.kernel", (FSDP, TENSOR)),
    (rf"({KERNEL}|embedding|lora_a|lora_b)", (FSDP, None)),
    (r".*", ()),
)
"""Last part of a parameter's name -> what its dimensions are cut over. The first rule that matches holds."""


def spec(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """How a parameter is cut over axes of these sizes, by the rules.

    An axis that does not divide its dimension evenly is left out; fsdp goes to the first other dimension that it does divide.
    Of a stack (see `ftjax.stacked`) every layer's parameter is cut as it would be alone.
    """
    if is_stack(name):
        alone = spec(members(name)[0], shape[1:], sizes)
        return PartitionSpec(None, *alone) if alone else alone
    if math.prod(shape) < SMALLEST or len(shape) < 2:
        return PartitionSpec()
    wanted = next(axes for pattern, axes in RULES if re.search(rf"(^|\.){pattern}$", name))
    found: list[str | None] = [None] * len(shape)
    for dimension, axis in enumerate(wanted):
        if axis == TENSOR and sizes.get(TENSOR, 1) > 1 and shape[dimension] % sizes[TENSOR] == 0:
            found[dimension] = TENSOR
    if FSDP in wanted and sizes.get(FSDP, 1) > 1:
        order = sorted(range(len(shape)), key=lambda dimension: dimension != wanted.index(FSDP))
        free = (d for d in order if found[d] is None and shape[d] % sizes[FSDP] == 0)
        if (dimension := next(free, None)) is not None:
            found[dimension] = FSDP
    return PartitionSpec(*found)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the three axes over the first devices that it takes; an axis that is not named has size 1."""
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Mesh(np.asarray(devices[: math.prod(shape)]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices given, or all there are, along `data`."""
    devices = jax.devices() if devices is None else devices
    return make_mesh({DATA: len(devices)}, devices)


def read_mesh(text: str, devices: int, processes: int = 1) -> dict[str, int]:
    """`data=2,fsdp=4` to the sizes of the axes named.

    Raises InputError for another spelling, and unless the sizes multiply to the number of devices; one process may leave
    devices unused.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, number = part.strip().partition("=")
        if axis not in AXES:
            raise InputError(f"--mesh {text}: unknown axis {axis!r}; known are {', '.join(AXES)}.{did_you_mean(axis, AXES)}")
        if axis in sizes:
            raise InputError(f"--mesh {text}: {axis} is given twice.")
        if not (equals and number.isdecimal() and int(number) >= 1):
            raise InputError(f"--mesh {text}: must be auto or AXIS=NUMBER, joined by commas, such as data=2,fsdp=4.")
        sizes[axis] = int(number)
    total = math.prod(sizes.values())
    if total > devices or (processes > 1 and total < devices):
        raise InputError(f"--mesh {text}: takes {total} devices; there are {devices}.")
    return sizes


def row_axes() -> tuple[str, ...]:
    """The axes over which rows are spread in the mapped step that is being traced; () where a batch is whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in ROWS if axis in mesh.manual_axes and mesh.shape[axis] > 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run's arrays lie on a mesh.

    zero1: whether what trains is kept in parts over the data axis too (where fsdp does not cut it already).
    """

    mesh: Mesh
    zero1: bool = True

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes that split the batch and have more than one device."""
        return tuple(axis for axis in ROWS if self.mesh.shape[axis] > 1)

    @property
    def row_shards(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @property
    def tensor(self) -> int:
        """Size of the tensor axis."""
        return self.mesh.shape[TENSOR]

    @property
    def cuts_frozen(self) -> bool:
        """Whether frozen parameters are cut too."""
        return self.mesh.shape[FSDP] * self.tensor > 1

    @property
    def part(self) -> str | None:
        """The axis over which what trains is kept in parts; None where every device of the batch has it whole."""
        if self.mesh.shape[FSDP] > 1:
            return FSDP
        return DATA if self.zero1 and self.mesh.shape[DATA] > 1 else None

    def trained(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How a parameter that trains lies, and its moments and averages with it."""
        part = self.part
        sizes = {TENSOR: self.tensor, FSDP: self.mesh.shape[part] if part else 1}
        return PartitionSpec(*[part if axis == FSDP else axis for axis in spec(name, shape, sizes)])

    def frozen(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How a frozen parameter lies."""
        return spec(name, shape, self.mesh.shape)

    def cuts(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Which dimension is cut over `part`, of the parameters that train and are cut."""
        if self.part is None:
            return {}
        specs = {name: tuple(self.trained(name, value.shape)) for name, value in params.items()}
        return {name: found.index(self.part) for name, found in specs.items() if self.part in found}

    def own_rows(self, batch_size: int) -> slice:
        """Which rows of a batch lie on this process's devices."""
        spread = NamedSharding(self.mesh, PartitionSpec(ROWS)).addressable_devices_indices_map((batch_size,))
        bounds = [rows.indices(batch_size)[:2] for (rows,) in spread.values()]
        return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))

    def specs(self, state: Any) -> Any:
        """The `PartitionSpec` of every array of a `TrainState`: moments lie like their parameter, by its name in their path."""
        shapes = {name: value.shape for name, value in state.trainable.items()}

        def like_parameter(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
            keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            name = keys[-1].removeprefix("teacher.") if keys else ""
            return self.trained(name, leaf.shape) if shapes.get(name) == leaf.shape else PartitionSpec()

        whole = jax.tree.map(lambda _: PartitionSpec(), state)
        trains = {
            field: jax.tree_util.tree_map_with_path(like_parameter, getattr(state, field))
            for field in ("trainable", "optimizer_state", "teacher")
        }
        frozen = {name: self.frozen(name, value.shape) for name, value in state.frozen.items()}
        return dataclasses.replace(whole, frozen=frozen, **trains)

    def shardings(self, state: Any) -> Any:
        """The sharding of every array of a `TrainState`."""
        return jax.tree.map(functools.partial(NamedSharding, self.mesh), self.specs(state))

    def place(self, state: Any) -> Any:
        """A `TrainState` on the mesh's devices."""
        return jax.device_put(state, self.shardings(state))

    def put(self, name: str, value: Any, *, kept: bool = False) -> jax.Array:
        """A frozen parameter on the mesh's devices: every process takes from its whole value what its devices hold.

        kept: in the memory of their host instead, for later.
        """
        kind = {"memory_kind": "pinned_host"} if kept else {}
        sharding = NamedSharding(self.mesh, self.frozen(name, value.shape), **kind)
        if isinstance(getattr(value, "sharding", None), NamedSharding):  # it was kept
            return jax.device_put(value, sharding)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.asarray(value)[index])
