"""Keras weights, tf_model.h5, as transformers 4's TensorFlow classes save them, under PyTorch's names and in its shapes.

Keras puts a group for each layer of the model at the top and a dataset for each weight below, at the weight's own name:

    bert/tf_bert_for_sequence_classification/bert/encoder/layer_._0/attention/self/query/kernel:0

The first two words, group and model, are dropped; `_._` divides words, as `/` does; of a word `a___b` only b counts. The last
word is `kernel` (a linear layer, transposed against PyTorch's), `embeddings` or `weight` (a table, or a linear layer of GPT-2,
which is as in PyTorch), `gamma`, `beta` or `bias` (of GPT-2 as one row: (1, out)). Some releases keep attention's kernels by
head: (in, heads, size), at the output (heads, size, out), biases (heads, size).

Checked against files that the tests write with h5py in this layout, and the names of all their tensors against transformers
4.57.1's own conversion (`convert_tf_weight_name_to_pt_weight_name`). No file written by TensorFlow itself was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import InputError
from ftjax.pretrained.tensors import Header, rows

SINGLE, INDEX = "tf_model.h5", "tf_model.h5.index.json"
LAST_WORD = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}


def pytorch_name(path: str) -> str:
    """A dataset's path in the file to PyTorch's name of the weight."""
    name = path.partition("/")[2].removesuffix(":0").replace("_._", "/")
    words = [word.rpartition("___")[2] for word in name.split("/") if word][1:]
    return ".".join([*words[:-1], LAST_WORD.get(words[-1], words[-1])]) if words else ""


class KerasWeights:
    """The tensors of a tf_model.h5, see `ftjax.pretrained.tensors.Weights`.

    Raises InputError where h5py is missing, for a corrupt file, and for one that points to others or declares more than
    it holds.
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError:
            raise InputError(
                f"{path}: Keras weights need the package h5py, which is not installed; install it: pip install 'ftjax[h5]'."
            ) from None
        self._h5py, self._path = h5py, path
        self.headers: dict[str, Header] = {}
        self._datasets: dict[str, str] = {}
        size, found = path.stat().st_size, {}

        def collect(name: str, item: Any) -> None:  # links to other places and other files are never followed
            if isinstance(name, bytes):
                raise ValueError("a name is not UTF-8")
            if isinstance(item, h5py.Dataset):
                stored = item.id.get_storage_size() if not item.is_virtual and not item.external else -1
                found[name] = (item.shape or (), item.dtype, item.dtype.itemsize * (item.size or 0), stored)

        self._opened(lambda file: file.visititems(collect))
        for dataset, (shape, dtype, needed, stored) in found.items():
            name = pytorch_name(dataset)
            if stored < 0:
                raise InputError(f"{path}: {dataset} lies in another file; only weights in {SINGLE} itself are read.")
            if needed > min(stored, size) or dtype.kind not in "fiub":
                raise InputError(f"{path}: truncated or corrupt ({dataset} declares {list(shape)} of {dtype}).")
            if not name or name in self.headers:
                raise InputError(f"{path}: {dataset} is not a weight as transformers names them.")
            self.headers[name] = Header(_shape(dataset, shape), dtype)
            self._datasets[name] = dataset

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """Pieces of a tensor and where in it they belong, see `Weights`."""
        dataset, header = self._datasets[name], self.headers[name]
        kernel = _is_kernel(dataset)
        stored = Header(header.shape[::-1] if kernel else header.shape, header.dtype)
        for where in [...] if _by_head(dataset, self._opened(lambda file: file[dataset].ndim)) else rows(stored):
            block = self._opened(lambda file, where=where: file[dataset][where])
            if where is ...:
                yield ..., block.reshape(stored.shape).T if kernel else block.reshape(stored.shape)
            else:
                yield ((slice(None), where), block.T) if kernel else (where, block)

    def _opened(self, read: Any) -> Any:
        try:
            with self._h5py.File(self._path, "r") as file:
                return read(file)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self._path}: truncated or corrupt ({reason}); download or copy it again.") from None


def _is_kernel(dataset: str) -> bool:
    return dataset.endswith("/kernel:0")


def _by_head(dataset: str, dimensions: int) -> bool:
    return dimensions == (3 if _is_kernel(dataset) else 2) and dataset.endswith(("/kernel:0", "/bias:0"))


def _shape(dataset: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a dataset in the file to that of PyTorch's tensor."""
    if _by_head(dataset, len(shape)):
        if not _is_kernel(dataset):
            return (shape[0] * shape[1],)
        inwards = re.search(r"/(query|key|value)/kernel:0$", dataset)
        return (shape[1] * shape[2], shape[0]) if inwards else (shape[2], shape[0] * shape[1])
    return shape[::-1] if _is_kernel(dataset) else shape
