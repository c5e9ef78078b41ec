"""Devices to compile for that need not be there: `--topology` -> devices."""

from __future__ import annotations

import atexit
import importlib.util
import math
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from ftjax.cost import kernels
from ftjax.cost.chips import Chip, read_topology
from ftjax.errors import InputError
from ftjax.launch import NO_TPU

if TYPE_CHECKING:
    import jax

LOCAL = ("cpu", "gpu")
"""Topologies that are the devices of this machine."""


def settle_environment(topology: str) -> None:
    """Set what must stand in the environment before JAX is imported: compile for a TPU, but ask for none; and write the
    instructions of kernels into a directory that goes with this process.

    Raises InputError for a topology that is not spelled right, and where the compiler is missing.
    """
    if topology in LOCAL:
        return
    read_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology {topology}: needs libtpu, the compiler for TPUs: pip install 'ftjax[tpu]'.")
    for name, value in {**NO_TPU, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a kept program cannot be read again without its chip
    directory = tempfile.mkdtemp(prefix=kernels.OURS)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["LIBTPU_INIT_ARGS"] = kernels.options(os.environ.get("LIBTPU_INIT_ARGS", ""), directory)


def devices_of(topology: str) -> tuple[list[jax.Device], Chip | None]:
    """The devices of a topology and their kind of chip (None: devices of this machine). See `settle_environment` for TPUs.

    Raises InputError for a size that the compiler does not know, and for a gpu that is not there.
    """
    import jax
    from jax.experimental import topologies

    if topology in LOCAL:
        try:
            return jax.devices(topology), None
        except RuntimeError:
            raise InputError(f"--topology {topology}: this machine has none that JAX can use; see ftjax doctor.") from None
    chip, lengths = read_topology(topology)
    options: dict[str, Any] = {"chip_config_name": chip.config} if chip.config else {}
    if math.prod(lengths) <= chip.host:  # all on one machine; else the compiler's default, machines of 2 x 2
        options["chips_per_host_bounds"] = (*lengths, 1, 1)[:3]
    try:
        found = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # the compiler's own, of several types
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--topology {topology}: the TPU compiler knows no such slice ({reason}).") from None
    assert len(found) == math.prod(lengths) * chip.devices_per_chip, f"{topology}: {len(found)} devices"
    return list(found), chip
