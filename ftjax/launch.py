"""How the C library gives out memory; before JAX starts, where compiled programs are kept, that there is no TPU, and how often
Python looks for garbage; the end.

XLA on the CPU asks the C library for every step's buffers, tens to hundreds of megabytes, and gives them back after it. By
default each is mapped anew in pages of 4 KB that the kernel must clear one by one. Kept by the process and backed by
huge pages, a step of MiniLM takes about 0.8 of the time (docs/performance.md).
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.arena_max=1"
"""Ask for transparent huge pages; keep freed memory for the next step. One arena: a thread's own gives large blocks back."""


def huge_pages_possible() -> bool:
    """Whether the C library knows the settings: glibc from 2.35 on, on Linux."""
    try:
        name, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return sys.platform == "linux" and name == "glibc" and tuple(map(int, number.split("."))) >= (2, 35)
    except (AttributeError, ValueError, OSError):
        return False


TPU, GPU = ("accel*", "vfio/[0-9]*"), ("nvidia[0-9]*", "kfd")
"""What their device files are called."""


def has_any(patterns: tuple[str, ...], devices: Path = Path("/dev")) -> bool:
    """Whether the machine has a device file of such a name."""
    return any(any(devices.glob(pattern)) for pattern in patterns)


def accelerated(devices: Path = Path("/dev")) -> bool:
    """Whether steps run on a TPU or a GPU, as far as JAX's packages for them, device files and JAX_PLATFORMS tell."""
    found = [find_spec(package) and has_any(files, devices) for package, files in (("libtpu", TPU), ("jax_plugins", GPU))]
    return any(found) and os.environ.get("JAX_PLATFORMS") != "cpu"


def one_heap() -> bool:
    """Whether all threads share a heap: those that ask for much memory at once, in small pieces, then wait for each other."""
    return os.environ.get(VARIABLE) == TUNABLES


def with_huge_pages(devices: Path = Path("/dev")) -> None:
    """Start this very command again with the settings in its environment, unless they, or others, are there already.

    Not where an accelerator computes, whose buffers are its own: threads that tokenise are faster with a heap each.
    """
    if huge_pages_possible() and VARIABLE not in os.environ and sys.executable and not accelerated(devices):
        os.environ[VARIABLE] = TUNABLES
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_programs() -> None:
    """Let JAX keep what it compiles from one process to the next, in ~/.cache/ftjax/programs, the oldest go first.

    JAX's own variables go before: JAX_COMPILATION_CACHE_DIR (where), JAX_ENABLE_COMPILATION_CACHE=false (not at all).
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache).expanduser() / "ftjax" / "programs"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 10**9))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


NO_TPU = {
    **{"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"},
    **{"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3"},
}
"""What keeps libtpu, where it is installed for its compiler, from looking for chips in the network and complaining of none."""


def without_tpu() -> None:
    """Let a machine that has no TPU's device files not look for one; variables that are set already stay."""
    if not has_any(TPU):
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def collect_seldom() -> None:
    """Let Python look for objects that only refer to each other a hundredth as often.

    Imports and tracing leave hundreds of thousands of objects, which stay, and each time all were gone through: 0.9 s until
    the first step of MiniLM (docs/performance.md).
    """
    gc.set_threshold(100_000, 20, 50)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Around all that a process does: at its end compiled programs and buffers are not taken apart, which would take a second.

    What is registered with `atexit` meanwhile is done, and threads are waited for. Any other exception than SystemExit, and
    output that cannot be written, end the process as ever.
    """
    status: list[int] = []

    def leave() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return
        if status:
            os._exit(status[0])

    atexit.register(leave)  # what is registered first is called last
    try:
        yield
        status.append(0)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status.append(end.code or 0)
        raise
