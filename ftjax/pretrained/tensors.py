"""Reading and writing safetensors: single files or shards with an index. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin", "model.ckpt", "flax_model.msgpack")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where it is missing, is not UTF-8 JSON or is not an object."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent}: no {path.name}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None
    except (OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a JSON object.")
    return value


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in a fixed order.

    Raises InputError where there are none, only pickled ones, or an index that names a file outside the directory.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
            raise InputError(f"{directory / INDEX}: has no weight_map of tensor names to file names.")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(f"{directory / INDEX}: names {name!r}, which is not a safetensors file beside it.")
            if not (directory / name).is_file():
                raise InputError(f"{directory}: the shard {name} that {INDEX} names is missing; download the model again.")
        return [directory / name for name in names]
    if pickled := [name for name in PICKLED if (directory / name).exists()]:
        raise InputError(
            f"{directory}: holds only {pickled[0]}, which is refused because unpickling can run code; convert it first: "
            "AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True) in PyTorch."
        )
    raise InputError(f"{directory}: no weights; expected {SINGLE} or {INDEX} with its shards.")


def read_tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) one at a time, in the files' own dtypes. Raises InputError for a truncated or corrupt file."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is not iterable)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: truncated or corrupt ({error}); download or copy it again.") from None


def write_tensors(tensors: dict[str, np.ndarray], directory: Path) -> None:
    """Write model.safetensors atomically: a reader sees the old file or the new one, whole."""
    from safetensors.numpy import save_file

    partial = directory / f".{SINGLE}.partial"
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata={"format": "pt"})
    os.replace(partial, directory / SINGLE)
