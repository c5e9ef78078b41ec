"""A run's directory: config.json, metrics.jsonl, result.json, predictions.jsonl and who may write there."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftjax.config import TrainConfig, flag
from ftjax.errors import InputError
from ftjax.pretrained.tensors import read_json
from ftjax.redact import redact
from ftjax.trackers import Trackers

FREE = (
    *("output", "resume", "json", "log_every", "save_every", "write_timeout", "tracker", "tracker_project"),
    *("push_to_hub", "private"),
    *("mesh", "sharding", "parallel", "remat", "coordinator_address", "process_count", "process_index", "process_timeout"),
    *("prefix_cache", "prefix_cache_memory_gb", "prefix_cache_disk_gb", "prefix_cache_dir"),
)
"""Settings that may differ between a run and its resumption: they do not change the result,
but for the last digits of sums that are taken in another order."""
LOCK = ".lock"


def write_json(path: Path, value: Any) -> None:
    """Write atomically and without secrets; numbers that are not finite become null, as JSON has none."""
    partial = path.with_name(f".{path.name}.partial")
    text = redact(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def finite(value: Any) -> Any:
    """The value with every float that is not finite replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check(config: TrainConfig) -> bool:
    """Whether there is a run to resume in --output. Writes nothing.

    Raises InputError where the directory holds something else, another run, one that --resume was not given for, or one that
    another process is at.
    """
    directory = config.output
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise InputError(f"--output {directory}: a file, not a directory.")
    if (directory / LOCK).is_file():
        with (directory / LOCK).open("rb") as file:
            _lock(file.fileno(), directory)  # closing it lets go
    if all(path.name in (LOCK, ".config.json.partial") for path in directory.iterdir()):  # cut short before it began
        return False
    if not (directory / "config.json").is_file():
        raise InputError(f"--output {directory}: not empty and not a run of ftjax; choose another directory.")
    if not config.resume:
        raise InputError(
            f"--output {directory}: holds a run already; go on with it with --resume, or choose another directory."
        )
    try:
        saved = read_json(directory / "config.json")
    except InputError:
        raise InputError(f"--output {directory}: its config.json is not a run's; choose another directory.") from None
    usual = TrainConfig(model="", output=directory).to_dict()  # of settings that the run's version did not have yet
    saved = json.loads(json.dumps(usual)) | saved
    wanted = json.loads(redact(json.dumps(config.to_dict(), ensure_ascii=False)))
    if differing := [name for name in wanted if name not in FREE and saved.get(name) != wanted[name]]:
        name = differing[0]
        raise InputError(
            f"--output {directory}: holds another run: its {flag(name)} is {saved.get(name)!r}, not {wanted[name]!r}"
            + (f" (and {len(differing) - 1} more settings differ)" if differing[1:] else "")
            + f"; choose another directory. To go on from what that run learnt, start from --model {directory / 'model'}."
        )
    return True


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """While inside, no other process may write to the directory, which must exist; InputError where one does already.

    The lock goes with the process, however that ends. File systems that know no locks are left without.
    """
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, directory)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(file)


PATIENCE = 2.0
"""Seconds to wait for a lock: a process that was killed just now may still have it."""


def _lock(file: int, directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.pread(file, 300, 0).decode(errors="replace") or "another process"
                raise InputError(
                    f"--output {directory}: {owner} is at this run; wait for it, end it, or choose another directory."
                ) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return


def bucket_lengths(directory: Path) -> tuple[int, ...]:
    """The lengths that the run in a directory pads its rows to, from its config.json."""
    saved = read_json(directory / "config.json").get("bucket_lengths", [])
    if not isinstance(saved, list) or not all(isinstance(length, int) and 0 < length < 2**31 for length in saved):
        raise InputError(f"{directory / 'config.json'}: bucket_lengths is {saved!r}, not a list of lengths.")
    return tuple(saved)


def predicts(directory: Path) -> bool:
    """Whether the model of the run in a directory predicts what its task asks for, from its config.json."""
    saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return bool(saved.get("labels")) or saved.get("task") in (
        "regression",
        "question-answering",
        "seq2seq",
        "causal-lm",
        "dialogue",
    )


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line, all of them or none."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
    os.replace(partial, path)


class MetricsLog:
    """metrics.jsonl and the same numbers as TensorBoard events. Opening drops what lies after `step`.

    writes: whether this process is the one that does. trackers: those that get the same numbers, under TensorBoard's names.
    """

    trackers: Trackers | None = None

    def __init__(self, directory: Path, step: int, *, writes: bool = True) -> None:
        self._events: Any = None
        if not writes:
            return
        from tensorboardX import SummaryWriter

        self.path = directory / "metrics.jsonl"
        kept: list[str] = []
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        partial = directory / ".metrics.jsonl.partial"
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, self.path)
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One line, on disk at once."""
        if self._events is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({"kind": kind, "step": step, **values}), allow_nan=False) + "\n")
        named = {f"{kind}/{name}": value for name, value in values.items() if math.isfinite(value)}
        for name, value in named.items():
            self._events.add_scalar(name, value, step)
        if self.trackers is not None:
            self.trackers.write(named, step)

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
        if self.trackers is not None:
            self.trackers.close()


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return math.inf


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """A full or failing disk is no fault of ours: say so in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO):
            raise
        raise InputError(
            f"--output {output}: cannot be read or written ({error.strerror}); mend that and run again with --resume."
        ) from error
