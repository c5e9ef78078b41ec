"""Tensors in files: what a kind of file must offer, tensors in parts, and safetensors, single files or shards with an index.

Nothing is ever unpickled, and a tensor is never in memory twice: headers come first, then values some rows at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ftjax.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK_BYTES = 2**24  # of a tensor that are read at a time
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{name}{bits}") for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}
"""What safetensors calls a dtype -> that of numpy."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of a tensor before any of it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Weights(Protocol):
    """The tensors of a model directory under PyTorch's names and in PyTorch's shapes, whatever kind of file they are in."""

    @property
    def headers(self) -> Mapping[str, Header]:
        """Name -> dtype and shape."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong: (index, array). InputError for a truncated or corrupt file."""
        ...


def read_whole(weights: Weights, name: str) -> np.ndarray:
    """One tensor in the file's own dtype."""
    header = weights.headers[name]
    whole = np.empty(header.shape, header.dtype)
    for where, block in weights.blocks(name):
        whole[where] = block
    return whole


def rows(header: Header) -> Iterator[Any]:
    """Indices of a tensor's rows, as many at a time as make a block; everything at once where there are none."""
    if not header.shape:
        yield ...
        return
    width = math.prod(header.shape[1:]) * header.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(width, 1))
    for start in range(0, header.shape[0], step):
        yield slice(start, min(start + step, header.shape[0]))


class Parts:
    """Weights of which some tensors hold several, side by side along the last axis: each is a tensor by itself here.

    parts: the names of what a tensor holds, in order, or [] where it is one. Raises InputError for one that does not divide.
    """

    def __init__(self, weights: Weights, parts: Callable[[str], list[str]], directory: Path) -> None:
        self.headers: dict[str, Header] = {}
        self._weights = weights
        self._places: dict[str, tuple[str, slice]] = {}
        for name, header in weights.headers.items():
            names = parts(name)
            if not names:
                self.headers[name] = header
                continue
            *rest, width = header.shape or (0,)
            if width % len(names) or not width:
                raise InputError(
                    f"{directory}: {name} is {list(header.shape)}, which is not {len(names)} matrices side by side."
                )
            step = width // len(names)
            for number, part in enumerate(names):
                self.headers[part] = Header((*rest, step), header.dtype)
                self._places[part] = (name, slice(number * step, (number + 1) * step))

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong, see `Weights`; a part comes whole."""
        if name not in self._places:
            yield from self._weights.blocks(name)
            return
        whole, columns = self._places[name]
        yield ..., read_whole(self._weights, whole)[..., columns]


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


def safetensors_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in a fixed order; [] where there are none.

    Raises InputError for an index that names a file outside the directory or one that is missing.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        return []
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise InputError(f"{directory / INDEX}: has no weight_map of tensor names to file names.")
    names, there = sorted(set(weight_map.values())), {path.name for path in directory.iterdir()}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{directory / INDEX}: names {name!r}, which is not a safetensors file beside it.")
        if name not in there or not (directory / name).is_file():  # a name may be longer than the system takes
            raise InputError(f"{directory}: the shard {name} that {INDEX} names is missing; download the model again.")
    return [directory / name for name in names]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: truncated or corrupt ({error}); download or copy it again.") from None


class SafeTensors:
    """The tensors of safetensors files, see `Weights`."""

    def __init__(self, files: list[Path]) -> None:
        self.headers: dict[str, Header] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            with _opened(path) as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
                found = {name: Header(tuple(part.get_shape()), DTYPES[part.get_dtype()]) for name, part in parts.items()}
            for name in found:
                if name in self._files:
                    raise InputError(f"{path}: {name} is in {self._files[name].name} too.")
            self.headers |= found
            self._files |= dict.fromkeys(found, path)

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong, see `Weights`."""
        header = self.headers[name]
        for where in rows(header):
            # opened for every block: the file is mapped into memory, and what has been read would stay there
            with _opened(self._files[name]) as file:
                block = file.get_slice(name)[where] if header.shape else file.get_tensor(name)
            yield where, block


def write_tensors(tensors: dict[str, np.ndarray], directory: Path, name: str = SINGLE) -> None:
    """Write a safetensors file atomically: a reader sees the old file or the new one, whole."""
    from safetensors.numpy import save_file

    partial = directory / f".{name}.partial"
    save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, partial, metadata={"format": "pt"})
    partial.chmod(0o666 & ~_umask())  # the library writes files that nobody else may read
    os.replace(partial, directory / name)


def _umask() -> int:
    """What the user takes away from a new file's permissions."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
