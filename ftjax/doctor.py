"""What this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "safetensors")


def examine() -> dict[str, Any]:
    """{"ok": bool, "python", "packages", "devices", "memory_bytes", "disk_free_bytes", "advice": [one line each]}."""
    advice: list[str] = []
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
            advice.append(f"{name} is missing: pip install ftjax")
    devices: list[str] = []
    if packages["jax"]:
        import jax

        try:
            devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
            total = sum(jax.numpy.arange(4.0)).item()
            if total != 6.0:
                advice.append(f"{devices[0]} computes 0 + 1 + 2 + 3 = {total}: a broken installation or device.")
        except RuntimeError as error:
            advice.append(f"JAX finds no device ({str(error).splitlines()[0]}).")
        if devices and all(device.startswith("cpu") for device in devices):
            if Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
                advice.append("This machine has a TPU that JAX does not use: pip install 'ftjax[tpu]'")
            if shutil.which("nvidia-smi"):
                advice.append("This machine has an NVIDIA GPU that JAX does not use: pip install 'ftjax[cuda]'")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(Path.cwd()).free
    if free < 2 * 10**9:
        advice.append(f"Only {free / 1e9:.1f} GB of disk are free here; a run keeps up to three checkpoints and a model.")
    if importlib.util.find_spec("libtpu") is None:
        advice.append("ftjax plan needs the compiler for TPUs, chips or none: pip install 'ftjax[tpu]'")
    if importlib.util.find_spec("torch") is not None:
        advice.append("PyTorch is installed; ftjax does not need it.")
    failed = not devices or any(v is None for v in packages.values())
    return {
        "ok": not failed,
        "python": platform.python_version(),
        "packages": packages,
        "devices": devices,
        "memory_bytes": memory,
        "disk_free_bytes": free,
        "advice": advice,
    }
