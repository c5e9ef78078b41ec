"""Training rows of a run in several processes: each reads and tokenises its share of them, and maps those of the others.

A share's tokens go into files in a directory that all processes see; they are mapped into memory, not read. What a batch is
made of depends on lengths and labels of all rows: those alone are known to each process.

Where some process cannot read or tokenise its share, all of them take up all the rows: what is wrong is then said as one
process would, with the number that the row has in its file.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ftjax import processes, rundir
from ftjax.data.files import Rows
from ftjax.data.parts import Part
from ftjax.data.tokenize import Examples, Pieces
from ftjax.errors import InputError
from ftjax.objectives import NO_LABEL
from ftjax.tasks.task import Task

INDEX = "index.npz"
TOTALS = ("truncated", "empty")
Made = TypeVar("Made")


@contextmanager
def directory(output: Path) -> Iterator[Path | None]:
    """A directory beside the run's own for the shares, gone at the end; None where there is one process."""
    if jax.process_count() == 1:
        yield None
        return
    path = output.absolute().with_name(f".{output.name}.tokens")
    if processes.is_first():
        with rundir.disk_errors(output):
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
            path.mkdir(parents=True, exist_ok=True)
    processes.wait_for_all(f"directory {path}")
    try:
        yield path
    finally:
        if processes.is_first():
            shutil.rmtree(path, ignore_errors=True)


class Unshared(Exception):
    """Some process cannot do its share of the rows; raised in all of them."""


def own_part() -> Part:
    """What this process reads of every file."""
    return Part(jax.process_index(), jax.process_index() + 1, jax.process_count())


def in_all(make: Callable[[], Made]) -> Made:
    """What `make()` gives; `Unshared` in every process where it raises InputError in any."""
    found: list[Made] = []
    with suppress(InputError):
        found.append(make())
    if processes.agree(not found):
        raise Unshared
    return found[0]


def total(number: int, rows: Rows) -> int:
    """A number that is counted in the rows, of all of them where these are a part."""
    return sum(processes.gather(number)) if rows.part else number


def standing_for(rows: Rows, task: Task) -> Rows:
    """Rows whose labels tell `Task.fitted` as much as those of all rows, where these are a part."""
    if not rows.part:
        return rows
    labels = [hashable(label) for labels in processes.gather(task.occurring(rows)) for label in labels]
    return Rows([], None, list(dict.fromkeys(labels)), rows.source, rows.label_names)


def hashable(value: Any) -> Any:
    """A JSON value with tuples for lists."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def encoded(rows: Rows, encode: Callable[[Rows], Examples], shares: Path | None) -> Examples:
    """What `encode` gives of all rows, of which every process has done its share.

    shares: a directory for these rows alone; None, or too few rows: every process does it all. InputError as `encode`, in all
    processes; of rows that are a part `Unshared`.
    """
    number, of = jax.process_index(), jax.process_count()
    if shares is None or (not rows.part and len(rows.texts) < of):
        return encode(rows)
    if rows.part:
        share, bounds = rows, [0, *accumulate(processes.gather(len(rows.texts)))]
    else:
        bounds = [len(rows.texts) * i // of for i in range(of + 1)]
        share = between(rows, bounds[number], bounds[number + 1])

    def done() -> Examples:
        own = encode(share)
        with rundir.disk_errors(shares):
            write(own, shares / str(number))
        return own

    try:
        own = in_all(done)
    except Unshared:
        if rows.part:
            raise
        return encode(rows)  # which says what is wrong, with the number that the row has among all
    return together(own, [read(shares / str(i)) for i in range(of)], bounds)


def between(rows: Rows, start: int, stop: int) -> Rows:
    """The rows [start, stop)."""
    parts = {name: getattr(rows, name) and getattr(rows, name)[start:stop] for name in ("texts", "pairs", "labels")}
    return dataclasses.replace(rows, **parts)


def write(examples: Examples, path: Path) -> None:
    """A share as a directory: what each token has in files to be mapped, what each row has in an index."""
    shutil.rmtree(path, ignore_errors=True)  # never into files that may be mapped
    path.mkdir(parents=True)
    for name in of_tokens(examples):
        np.save(path / f"{name}.npy", getattr(examples, name))
    index = {"lengths": examples.lengths, "labeled": examples.labeled}
    index |= {name: np.array(getattr(examples, name)) for name in TOTALS}
    index |= {} if examples.per_token else {"labels": examples.labels}
    index |= {} if examples.rows is None else {"rows": examples.rows}
    np.savez(path / INDEX, **index)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, np.ndarray]:
    """What `write` wrote, by name."""
    with np.load(path / INDEX, allow_pickle=False) as index:
        found = dict(index)
    return found | {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in path.glob("*.npy")}


def together(own: Examples, shares: Sequence[dict[str, np.ndarray]], bounds: Sequence[int]) -> Examples:
    """The examples of all shares, of the kind of this process's own. bounds: the numbers of their first rows."""
    lengths = np.concatenate([share["lengths"] for share in shares])
    fields: dict[str, Any] = {name: Pieces([share[name] for share in shares]) for name in of_tokens(own)}
    if not own.per_token:
        fields["labels"] = stacked([share["labels"] for share in shares])
    if own.rows is not None:
        fields["rows"] = np.concatenate([share["rows"] + first for share, first in zip(shares, bounds, strict=False)])
    fields |= {name: sum(int(share[name]) for share in shares) for name in TOTALS}
    found = dataclasses.replace(own, starts=np.concatenate([[0], lengths.cumsum()]), spans=None, **fields)
    return found.knowing(np.concatenate([share["labeled"] for share in shares]))


def of_tokens(examples: Examples) -> tuple[str, ...]:
    """The fields that have an item a token."""
    return ("tokens", "token_types", *(("labels",) if examples.per_token else ()))


def stacked(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Labels (rows, ...) of all shares; texts to write, as wide as a share's longest, are filled up."""
    if labels[0].ndim < 2:
        return np.concatenate(labels)
    width = max(part.shape[1] for part in labels)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=NO_LABEL) for p in labels])
