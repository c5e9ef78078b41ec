"""What TPU chips can do at most, and what their compiler takes for granted: the numbers behind every predicted figure.

Figures are per JAX device: a whole chip, except on v3, where each of a chip's two cores is a device of its own.

Sources: peak, memory and its bandwidth: Google's pages of each version (https://cloud.google.com/tpu/docs/v5e and so on).
Links: "How to Scale Your Model" (https://jax-ml.github.io/scaling-book/tpus/), bytes/s of one ring, both directions.
Clocks: peak / (2 x multiply-add units), rounded; so a matmul that keeps every unit busy takes as many cycles as it should.
"""

from __future__ import annotations

import dataclasses
import math
import re

from ftjax.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. peak_flops: bfloat16 operands, float32 sums. link_bandwidth: of a ring through it, both directions.

    dimensions: in which chips are wired. host: chips of one machine. config: what the compiler calls the usual setting of
    the chip, where it is not the compiler's own default.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    clock: float
    dimensions: int
    host: int
    devices_per_chip: int = 1
    config: str | None = None


GIB = 2**30
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # a core of v3: 2 units of 128 x 128; a chip has two, 123 TFLOP/s, 32 GiB, 900 GB/s
        Chip("v3", 61.5e12, 16 * GIB, 450e9, 200e9, 0.94e9, 2, 4, devices_per_chip=2),
        # two cores of 4 units of 128 x 128 that are one device, as they are on Cloud TPU VMs
        Chip("v4", 275e12, 32 * GIB, 1200e9, 90e9, 1.05e9, 3, 4, config="megacore"),
        Chip("v5e", 197e12, 16 * GIB, 819e9, 90e9, 1.5e9, 2, 8),  # 4 units of 128 x 128
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 180e9, 1.75e9, 3, 4),  # 2 cores of 4 units of 128 x 128, one device
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 180e9, 1.75e9, 2, 8),  # 262,144 multiply-adds a cycle
    )
}
"""Versions that the compiler knows and that have been tried, see tests/test_plan.py."""


def read_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5e:2x4` to (its chip, how many chips lie in each dimension). InputError for another spelling or an unknown version."""
    version, colon, size = text.partition(":")
    if named := re.fullmatch(r"(v\d+[a-z]*?)(litepod)?-\d+", text):  # as Cloud TPU names a number of chips
        chip = CHIPS.get("v5e" if named[2] else named[1])
        like = f"{chip.name}:{example(chip)}" if chip else "v5e:2x4"
        raise InputError(f"--topology {text}: say how the chips lie, as in {like}, which is {chips_of(like)} chips.")
    if version not in CHIPS:
        known = ", ".join([*CHIPS, "cpu", "gpu"])
        raise InputError(f"--topology {text}: unknown chip; known are {known}.{did_you_mean(version, CHIPS)}")
    chip = CHIPS[version]
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise InputError(f"--topology {text}: give a size after the version, such as {version}:{example(chip)}.")
    lengths = [int(length) for length in size.split("x")]
    if len(lengths) != chip.dimensions:
        raise InputError(
            f"--topology {text}: {version} chips lie in {chip.dimensions} dimensions, such as {version}:{example(chip)}."
        )
    return chip, tuple(lengths)


def chips_of(topology: str) -> int:
    """How many chips a topology has."""
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def example(chip: Chip) -> str:
    """A size that a chip comes in."""
    return "2x4" if chip.dimensions == 2 else "2x2x1"
