"""The frozen first layers, run once an example instead of once an epoch.

Where the layers up to some depth are frozen their dropout is off, so their output for an example never changes. It is
computed by a program of its own and takes the place of the tokens in the batch, as `prefix`; the step then runs the
rest alone. With a cache that output is kept (in memory, or in a file that is mapped into memory) and later epochs only
read it; without one the same program makes it anew for every batch, and the numbers are the same, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import ftjax
from ftjax.data.batches import batches, plan_epoch
from ftjax.data.tokenize import Examples
from ftjax.models import Model, Params
from ftjax.objectives import Batch
from ftjax.parallel import Compiled
from ftjax.stacked import unstack

Where = Literal["auto", "memory", "disk", "off"]
Attach = Callable[[dict[str, Any]], dict[str, Any]]
"""A batch with its tokens -> the batch with `prefix` in their place."""


def unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    """The `Attach` of a model without a frozen prefix."""
    return batch


FORMAT = 2  # of what a cached file means; a new number makes all old ones stale


def prefix_step(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """A step (params, batch) -> what `model.prefix_layers` layers make of the batch, float32 (batch, length, hidden).

    If those are all the layers it is what the classifier reads of the last one: (batch, 1, hidden) unless it is of tokens.
    """

    def step(params: Params, batch: Batch) -> jax.Array:
        return model.bind(params).hidden_states(batch, stop=model.prefix_layers, readout=True)[-1]

    return step


def attached(model: Model, batch: dict[str, Any], prefix: Any = None) -> dict[str, Any]:
    """The batch with the output of the model's frozen layers, or the shape of it, in the place of its tokens."""
    whole = model.frozen_readout
    size, length = batch["input_ids"].shape
    if prefix is None:
        prefix = jax.ShapeDtypeStruct((size, 1 if whole else length, model.config.hidden_size), np.float32)
    kept = ("labels", "example_ids") if whole else ("labels", "example_ids", "attention_mask")
    return {"prefix": prefix, **{name: batch[name] for name in kept}}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where the cache may be, and how large. directory: of its files; keep: leave them there for other runs."""

    where: Where = "auto"
    memory_bytes: int = 2_000_000_000
    disk_bytes: int = 20_000_000_000
    directory: Path = Path("prefix-cache")
    keep: bool = False


class FrozenPrefix:
    """Attaches the output of a model's frozen layers to batches.

    params: the frozen parameters. batch_size, buckets, pad_token_id: as in training, so that a cached row has been
    through the very program that would make it anew. uses: how often a row will be read; a cache pays from 2 on.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        program: Compiled,
        *,
        buckets: tuple[int, ...],
        batch_size: int,
        pad_token_id: int,
        limits: Limits,
        uses: int,
    ) -> None:
        self.model, self.params, self.program, self.limits = model, params, program, limits
        self.buckets, self.batch_size, self.pad_token_id = buckets, batch_size, pad_token_id
        self.whole = model.frozen_readout
        self.worth_it = uses > 1 or limits.keep
        self._files: list[Path] = []

    def place(self, examples: list[Examples]) -> tuple[Literal["memory", "disk", "off"], str]:
        """Where the cache for these rows goes, and the line that says so and what it takes."""
        needed, limits = sum(self.bytes(e) for e in examples), self.limits
        layers = f"The first {self.model.prefix_layers} of {self.model.config.num_hidden_layers} layers are frozen"
        if limits.where == "off" or not self.worth_it:
            why = "as --prefix-cache off asks" if limits.where == "off" else "there is only one epoch"
            return "off", f"{layers}, without dropout; their output is computed in every step ({why})."
        takes = f"{layers}, without dropout: computed once for every row, kept in"
        if limits.where == "memory" or (limits.where == "auto" and needed <= limits.memory_bytes):
            if needed <= limits.memory_bytes:
                return "memory", f"{takes} memory ({_size(needed)})."
            return "off", _too_large(layers, needed, limits.memory_bytes, "--prefix-cache-memory-gb")
        parent = next(p for p in (limits.directory, *limits.directory.absolute().parents) if p.exists())
        free = shutil.disk_usage(parent).free
        if needed > limits.disk_bytes:
            return "off", _too_large(layers, needed, limits.disk_bytes, "--prefix-cache-disk-gb")
        if needed > 0.9 * free and not all(self.path(e).exists() for e in examples):
            return "off", _too_large(layers, needed, free, f"the free disk at {parent}")
        return "disk", f"{takes} {limits.directory} ({_size(needed)})."

    def bytes(self, examples: Examples) -> int:
        """What the cached rows take."""
        return 4 * self.model.config.hidden_size * (len(examples) if self.whole else len(examples.tokens))

    def computed(self) -> Attach:
        """Computes the prefix of every batch anew."""
        return lambda batch: attached(self.model, batch, self._compute(batch))

    def cached(self, examples: Examples, place: Literal["memory", "disk"], on_batch: Callable[[int, int], None]) -> Attach:
        """Computes the prefix of every row now (unless a file has it) and attaches it from then on.

        on_batch: called with (batches done, batches in all).
        """
        starts = np.arange(len(examples) + 1) if self.whole else examples.starts
        values = self._values(examples, starts, place, on_batch)
        hidden = self.model.config.hidden_size

        def attach(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            size, length = batch["input_ids"].shape
            prefix = np.zeros((size, 1 if self.whole else length, hidden), np.float32)
            for i, row in enumerate(batch["example_ids"]):
                if row >= 0:
                    start, end = starts[row], starts[row + 1]
                    prefix[i, : end - start] = values[start:end]
            return attached(self.model, batch, prefix)

        return attach

    def path(self, examples: Examples) -> Path:
        """The file of these rows: its name is a digest of everything that their prefix depends on."""
        return self.limits.directory / f"{self._digest(examples)}.npy"

    def clean(self) -> None:
        """Remove the files that this run has written, unless they are to be kept."""
        if not self.limits.keep:
            for path in self._files:
                path.unlink(missing_ok=True)
            if self._files and self.limits.directory.is_dir() and not any(self.limits.directory.iterdir()):
                self.limits.directory.rmdir()

    def _compute(self, batch: dict[str, np.ndarray]) -> Any:
        """The prefix of a batch, every row padded to its own bucket: sums over a longer one would round otherwise.

        Rows left over in a bucket are trained in a longer one (see `plan_epoch`), not always with the same company.
        """
        size, length = batch["input_ids"].shape
        lengths = batch["attention_mask"].sum(-1)
        own = np.asarray(self.buckets)[np.searchsorted(self.buckets, lengths)]
        kinds = np.unique(own[lengths > 0])
        if list(kinds) == [length]:
            return self.program(self.params, batch)
        prefix = np.zeros((size, 1 if self.whole else length, self.model.config.hidden_size), np.float32)
        for bucket in kinds:
            narrow = {name: value[:, :bucket] if value.ndim > 1 else value for name, value in batch.items()}
            rows = np.flatnonzero((own == bucket) & (lengths > 0))
            prefix[rows, :bucket] = np.asarray(self.program(self.params, narrow))[rows]
        return prefix

    def _values(
        self, examples: Examples, starts: np.ndarray, place: Literal["memory", "disk"], on_batch: Callable[[int, int], None]
    ) -> np.ndarray:
        shape = (int(starts[-1]), self.model.config.hidden_size)
        if place == "memory":
            return self._fill(np.empty(shape, np.float32), examples, starts, on_batch)
        path = self.path(examples)
        self._files.append(path)
        if path.exists():
            found = _open(path, shape)
            if found is not None:
                return found
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            # Mapped files that outgrow the disk end a process with SIGBUS: take the room first, which fails in words
            header = _header(shape)
            with partial.open("wb") as file:
                file.write(header)
                os.posix_fallocate(file.fileno(), 0, len(header) + 4 * shape[0] * shape[1])
            values = np.memmap(partial, np.float32, "r+", len(header), shape)
            self._fill(values, examples, starts, on_batch)
            values.flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return values

    def _fill(
        self, values: np.ndarray, examples: Examples, starts: np.ndarray, on_batch: Callable[[int, int], None]
    ) -> np.ndarray:
        total = len(plan_epoch(examples.lengths, self.buckets, self.batch_size, seed=None))
        source = batches(examples, self.buckets, self.batch_size, pad_token_id=self.pad_token_id, seed=None)
        for number, batch in enumerate(source, 1):
            prefix = np.asarray(self._compute(batch))
            for i, row in enumerate(batch["example_ids"]):
                if row >= 0:
                    start, end = starts[row], starts[row + 1]
                    values[start:end] = prefix[i, : end - start]
            on_batch(number, total)
        return values

    def _digest(self, examples: Examples) -> str:
        device = jax.devices()[0]
        digest = hashlib.sha256()
        facts = (
            (FORMAT, ftjax.__version__, jax.__version__, device.platform, device.device_kind, len(jax.devices())),
            (self.model.config, self.model.heads, self.model.prefix_layers),
            (self.buckets, self.batch_size, self.pad_token_id),
        )
        digest.update(repr(facts).encode())
        (part,) = self.model.config.parts
        inside = (f"{part}.embeddings.", *(f"{part}.layers.{i}." for i in range(self.model.prefix_layers)))
        for name, value in sorted(unstack(self.params).items()):
            if name.startswith(inside):
                value = np.ascontiguousarray(value)
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(value.view(np.uint8).data)
        for array in (examples.tokens, examples.token_types, examples.starts):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()[:40]


def _open(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The file's array if it is whole and of this shape. What it says of itself is compared, never parsed."""
    header = _header(shape)
    try:
        with path.open("rb") as file:
            same = file.read(len(header)) == header and os.fstat(file.fileno()).st_size == len(header) + 4 * shape[0] * shape[1]
        return np.memmap(path, np.float32, "r", len(header), shape) if same else None
    except OSError:
        return None


def _header(shape: tuple[int, int]) -> bytes:
    """What an .npy file of such an array begins with."""
    file = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(np.broadcast_to(np.float32(0), shape)) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e7 else f"{number / 1e6:.2f} MB"


def _too_large(layers: str, needed: int, limit: int, name: str) -> str:
    return (
        f"{layers}, without dropout; a cache of their output would take {_size(needed)}, more than {name} allows "
        f"({_size(limit)}), so it is computed in every step."
    )
