"""One run in several processes, one a host: how they find each other, what each of them feeds, who writes.

JAX's distributed runtime does the work. Every process runs the same program on the same settings; --output is a directory
that all of them see. Process 0 alone writes files of its own there and speaks.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from ftjax.config import TrainConfig
from ftjax.errors import InputError

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
PATIENCE = 600
"""Seconds that processes wait for each other once they have started."""


def on_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX can find out by itself who else takes part: in a SLURM step, on GKE with TPUs, or on a Cloud TPU VM."""
    if all(name in environment for name in SLURM):
        return int(environment["SLURM_NTASKS"]) > 1
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return "TPU_SKIP_MDS_QUERY" not in environment and any(map(os.path.exists, TPU_DEVICES)) and find_spec("libtpu") is not None


def join(config: TrainConfig) -> None:
    """Start JAX's distributed runtime where there is more than one process. Nothing may have asked for a device before.

    Raises InputError for flags that do not go together, and where not all processes come in time.
    """
    given = {
        "coordinator_address": config.coordinator_address,
        "num_processes": config.process_count,
        "process_id": config.process_index,
    }
    if all(value is None for value in given.values()):
        if not on_cluster(os.environ):
            return
        given = {}
    elif None in given.values():
        raise InputError("--coordinator-address, --process-count and --process-index go together: give all three or none.")
    else:
        check(config)
    import jax

    try:
        with aborting(lambda log: missing(log, config.process_timeout, first=config.process_index == 0)):
            jax.distributed.initialize(**given, initialization_timeout=config.process_timeout)
    except (RuntimeError, ValueError) as error:
        raise InputError(missing(str(error), config.process_timeout)) from None
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries say on stdout, such as gloo of its connections, is not the result that --json prints there


@contextmanager
def aborting(line: Callable[[str], str]) -> Iterator[None]:
    """While inside, an abort by native code ends the process as a user's mistake does. line: of what it wrote on stderr.

    JAX's runtime logs who has not come and then aborts; no Python code is asked.
    """
    system, stderr, log = ctypes.CDLL(None), os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    system.signal.restype = ctypes.c_void_p

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        log.seek(0)
        os.write(stderr, f"ftjax: {line(log.read().decode(errors='replace'))}\n".encode())
        os._exit(2)

    before = system.signal(signal.SIGABRT, on_abort)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        log.close()
        system.signal(signal.SIGABRT, ctypes.c_void_p(before))


def check(config: TrainConfig) -> None:
    """InputError for an address or a number that cannot be."""
    count, index = config.process_count or 0, config.process_index or 0
    if not re.fullmatch(r".+:\d+", config.coordinator_address or ""):
        raise InputError(f"--coordinator-address {config.coordinator_address}: must be HOST:PORT of process 0.")
    if not 0 <= index < count:
        raise InputError(f"--process-index {index}: must be from 0 to --process-count - 1, which is {count - 1}.")
    if config.process_timeout < 1:
        raise InputError(f"--process-timeout {config.process_timeout}: must be at least 1 second.")


def missing(message: str, seconds: int, *, first: bool = False) -> str:
    """One line of what the runtime says when processes have not come within so many seconds.

    first: whether it says so to process 0, which, before all have come, is not told who has.
    """
    late = sorted({int(number) for number in re.findall(r"task[:/](\d+)", message.partition("timed out task")[2])})
    if late:
        return f"process {', '.join(map(str, late))} did not come within {seconds} s; does it run, with the same settings?"
    if first and "DEADLINE_EXCEEDED" in message:
        return f"not all other processes came within {seconds} s (--process-timeout); does each run, with this address?"
    if "DEADLINE_EXCEEDED" in message or "UNAVAILABLE" in message:
        return f"process 0 did not answer within {seconds} s; does it run, and can this host reach it?"
    return f"the processes of this run cannot find each other: {' '.join(message.split())[:200]}"


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    import jax

    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Until every process has come here. Raises InputError, naming who is missing, when one has not after ten minutes."""
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * PATIENCE)
    except RuntimeError as error:
        raise InputError(f"{where}: {missing(str(error), PATIENCE)}") from None


def agree(value: bool) -> bool:
    """Whether it is so in any process."""
    import jax
    from jax.experimental import multihost_utils

    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).any())


def fetch(value: Any) -> np.ndarray:
    """The whole of an array that may lie over several hosts, on each of them."""
    from jax.experimental import multihost_utils

    if getattr(value, "is_fully_addressable", True) or value.is_fully_replicated:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
