"""SHA-256 of files: whether what a run rests on is what it began with, and whether what it wrote is still whole."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.config import TrainConfig, flag
from ftjax.errors import InputError
from ftjax.pretrained.adapter import locate
from ftjax.pretrained.hub import FILES, KERAS, model_directory

Digests = dict[str, str]
"""A file's name, as seen from a directory -> the SHA-256 of what it holds, in hexadecimal."""


def of_file(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_directory(directory: Path, patterns: Sequence[str] = ("**/*",), leave_out: tuple[str, ...] = ()) -> Digests:
    """Those of the files below a directory that match a pattern, but for some names. OSError where one cannot be read."""
    found = {path for pattern in patterns for path in directory.glob(pattern)}
    files = sorted(path for path in found if path.name not in leave_out and path.is_file())
    return {path.relative_to(directory).as_posix(): of_file(path) for path in files}


def of_inputs(config: TrainConfig) -> dict[str, Digests]:
    """The digests of the files that a run reads: a setting -> its files.

    Of data sets and models that the hub names the library keeps the versions apart; what is not there is found missing by
    who reads it.
    """
    found: dict[str, Digests] = {}
    for name, path in _inputs(config):
        with contextlib.suppress(OSError):
            if path.is_file():
                found[name] = {path.name: of_file(path)}
            elif path.is_dir():
                found[name] = of_directory(path, (*FILES, *KERAS) if name in ("model", "adapter") else ("**/*",))
    return found


def _inputs(config: TrainConfig) -> Iterator[tuple[str, Path]]:
    for name in ("train_file", "eval_file", "test_file", "unlabeled_file", "teacher_scores", "dataset", "descriptions_file"):
        if (value := getattr(config, name)) is not None:
            yield name, Path(value)
    if config.spec.startswith("rules:"):
        yield "train_parameters", Path(config.spec.removeprefix("rules:"))
    base, adapter = locate(config.model, config.adapter)
    yield "model", model_directory(base)
    if adapter is not None:
        yield "adapter", adapter


def check_inputs(saved: Any, found: Mapping[str, Digests], config: TrainConfig) -> None:
    """InputError, naming the file, where what a run reads is not what it began with.

    saved: `files` of the run's config.json; a run of a version that kept none is not checked.
    """
    for name, digests in found.items():
        before = saved.get(name) if isinstance(saved, dict) else None
        if not isinstance(before, dict) or before == digests:
            continue
        changed = sorted(file for file in {*before, *digests} if before.get(file) != digests.get(file))
        given = getattr(config, name) or config.model
        what = "is gone" if changed[0] not in digests else "has changed" if changed[0] in before else "is new"
        raise InputError(
            f"{flag(name)} {given}: {changed[0]} {what} since the run in {config.output} began; "
            "put it back as it was, or start a new run in another directory."
        )
