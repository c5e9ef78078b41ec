"""One run in several processes, one a host: how they find each other, what each of them feeds, who writes.

JAX's distributed runtime does the work. Every process runs the same program on the same settings; --output is a directory
that all of them see. Process 0 alone writes files of its own there and speaks.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from ftjax.aborts import explain_aborts
from ftjax.config import TrainConfig
from ftjax.errors import InputError

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
PATIENCE = 600
"""Seconds that processes wait for each other once they have started."""
HEARD_OF = 100
"""Seconds after which a process that has not been heard of is lost, where --process-timeout is not shorter."""
GRACE = 10
"""Seconds that JAX's runtime has to say who is missing, before a process that waits gives up without knowing."""
FATAL = "Terminating process because the JAX distributed service detected fatal errors"
CHATTER = re.compile(rb"\[Gloo\] Rank \d+ is connected to \d+ peer ranks[^\n]*\n")
"""What native code says of things that went as they should."""
LOST = r"Gloo|coordination|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED"
"""What errors say that come from a lost process."""


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

    patience = min(config.process_timeout, HEARD_OF)
    where = config.coordinator_address
    explain_aborts(lambda log: lost(log.rpartition(FATAL)[2], config.process_timeout, where) if FATAL in log else None, CHATTER)
    try:
        with registered_within(config.process_timeout):
            jax.distributed.initialize(
                **given,
                initialization_timeout=config.process_timeout + GRACE,
                heartbeat_timeout_seconds=patience,
                shutdown_timeout_seconds=patience,
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(lost(str(error), config.process_timeout, where)) from None
    atexit.register(jax.distributed.shutdown)  # JAX's own would come when aborts are no longer explained
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries say on stdout, such as gloo of its connections, is not the result that --json prints there


@contextmanager
def registered_within(seconds: int) -> Iterator[None]:
    """While inside, JAX's runtime, started, names who has not come after so many seconds.

    Its own limit is an hour, and `jax.distributed.initialize` has no argument for it: a process's own time-out, which it has,
    comes too early to know a name.
    """
    from jaxlib import _jax  # type: ignore[attr-defined]

    make = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(make, cluster_register_timeout=seconds)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = make


def check(config: TrainConfig) -> None:
    """InputError for an address or a number that cannot be."""
    count, index = config.process_count or 0, config.process_index or 0
    if not re.fullmatch(r".+:\d+", config.coordinator_address or ""):
        raise InputError(f"--coordinator-address {config.coordinator_address}: must be HOST:PORT of process 0.")
    if not 0 <= index < count:
        raise InputError(f"--process-index {index}: must be from 0 to --process-count - 1, which is {count - 1}.")
    if config.process_timeout < 1:
        raise InputError(f"--process-timeout {config.process_timeout}: must be at least 1 second.")


def lost(message: str, seconds: int, address: str | None = None) -> str:
    """One line of what JAX's runtime says when a process has not come within so many seconds, or is not heard of any more.

    address: where process 0 was looked for, if that was given.
    """

    def named(after: str) -> str:
        found = re.search(rf"{after}[^\n]*?:\s*((?:\S*\d+\s)+)", message + "\n")
        return ", ".join(re.findall(r"(\d+)\s", found[1])) if found else ""

    again = "start all of them again, with --resume."
    if gone := named("tasks are unhealthy"):
        return f"process {gone} is lost: nothing was heard of it for {min(seconds, HEARD_OF)} s; {again}"
    if "Shutdown barrier has failed" in message and (early := re.search(r"first task at the barrier: \S*?(\d+)\.", message)):
        return f"process {early[1]} ended before the others; what it said tells why. Then {again}"
    if late := named("timed out task"):
        return f"process {late} did not come within {seconds} s; does it run, with the same settings?"
    if "leader task" in message:
        return f"process 0 is lost: it does not answer any more; {again}"
    if "DEADLINE_EXCEEDED" in message or "UNAVAILABLE" in message:
        at = f" at {address}" if address else ""
        return f"process 0 did not answer{at} within {seconds} s; does it run, and can this host reach it?"
    return f"the processes of this run cannot find each other: {' '.join(message.split())[:200]}"


@contextmanager
def last_word() -> Iterator[None]:
    """Around what several processes do: where one is lost, what fails in the others for it waits for JAX's runtime.

    That names the lost one and ends this process. A collective on CPUs fails before, and cannot know.
    """
    import jax

    try:
        yield
    except Exception as error:
        if jax.process_count() > 1 and any(re.search(LOST, str(each)) for each in causes(error)):
            time.sleep(HEARD_OF + GRACE)
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    import jax

    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Until every process has come here. Raises InputError, naming who is missing, when one has not after ten minutes."""
    import jax

    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * PATIENCE)
    except RuntimeError as error:
        raise InputError(f"{where}: {lost(str(error), PATIENCE)}") from None


def agree(value: bool) -> bool:
    """Whether it is so in any process."""
    import jax
    from jax.experimental import multihost_utils

    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).any())


def gather(value: Any) -> list[Any]:
    """A JSON value of each process, on all of them."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(own)))
    found = multihost_utils.process_allgather(np.pad(own, (0, int(sizes.max()) - len(own))))
    return [json.loads(bytes(text[:size])) for text, size in zip(found, sizes, strict=True)]


def first_says(make: Callable[[], Any]) -> Any:
    """A JSON value that the first process makes, on all of them. Where it raises InputError there, all of them do."""
    said: list[Any] = [None, None]
    if is_first():
        try:
            said = [make(), None]
        except InputError as error:
            said = [None, str(error)]
    value, wrong = gather(said)[0]
    if wrong is not None:
        raise InputError(wrong)
    return value


def fetch(value: Any) -> np.ndarray:
    """The whole of an array that may lie over several hosts, on each of them."""
    from jax.experimental import multihost_utils

    if getattr(value, "is_fully_addressable", True) or value.is_fully_replicated:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def kept_by_first(arrays: Iterable[tuple[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays whole in the first process, gathered one after the other; {} in the others, which hold one at a time."""
    kept: dict[str, np.ndarray] = {}
    for name, value in arrays:
        whole = fetch(value)
        if is_first():
            kept[name] = whole
        del value, whole
    return kept
