"""What this machine is and how much memory is used: read at the edges, for logs and reports."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

import jax


def device_description() -> str:
    """Such as `8 x TPU v5 lite` or `1 x cpu (2 cores, AMD EPYC)`."""
    devices = jax.devices()
    text = f"{len(devices)} x {devices[0].device_kind}"
    return text if devices[0].platform != "cpu" else f"{text} ({len(os.sched_getaffinity(0))} cores, {_processor()})"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return sys.platform


def reset_peak_memory() -> None:
    """Start `peak_memory_bytes` anew where the system allows it (Linux, this process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The accelerator's peak memory, summed over local devices; on a CPU the process's peak resident memory."""
    stats = [device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"]
    if stats and all(stats):
        return sum(s["peak_bytes_in_use"] for s in stats if s)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
