"""A finished run's directory, read back."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import InputError
from ftjax.report.formats import finite
from ftjax.tasks import TASKS, task_class
from ftjax.tasks.task import LOSS, Metric, Task

WITHOUT_LABELS = {
    "masked_lm_accuracy": Metric("masked-token accuracy"),
    "causal_lm_accuracy": Metric("next-token accuracy"),
    "loss": LOSS,
}
"""What runs can be compared by besides their task's own metrics."""


@dataclass(frozen=True)
class RunRecord:
    """What a finished run has left behind; the names are those of its files."""

    directory: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    predictions: list[dict[str, Any]]

    @property
    def task(self) -> type[Task]:
        """What was learnt."""
        name = self.config.get("task")
        return task_class(name if name in TASKS else TASKS[0])

    @property
    def method(self) -> str:
        """full, partial or self-supervised."""
        return str(self.config.get("method") or self.result.get("method") or "unknown method")

    def score(self, split: str, name: str) -> float | None:
        """A final score of `eval` or `test`, None where there is none."""
        scores = self.result.get(split)
        return finite(scores.get(name)) if isinstance(scores, dict) else None


def read_run(directory: str | Path) -> RunRecord:
    """Read a finished run.

    Raises InputError where the directory is not a run, the run has not finished, or one of its files is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give the --output of a finished run.")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: not a run of ftjax: it has no config.json.")
    if not (directory / "result.json").is_file():
        raise InputError(f"{directory}: this run has not finished (no result.json); go on with it with --resume.")
    return RunRecord(
        directory=directory,
        config=_read_object(directory / "config.json"),
        metrics=_read_lines(directory / "metrics.jsonl"),
        result=_read_object(directory / "result.json"),
        predictions=_read_lines(directory / "predictions.jsonl"),
    )


def names(runs: Sequence[RunRecord]) -> list[str]:
    """What each run is called: its method, with its directory's name where several runs share the method."""
    methods = Counter(run.method for run in runs)
    found = [r.method if methods[r.method] == 1 else f"{r.method} ({r.directory.name})" for r in runs]
    seen = Counter(found)
    return [name if seen[name] == 1 else f"{name} #{i}" for i, name in enumerate(found, 1)]


def measure(runs: Sequence[RunRecord]) -> tuple[str, str]:
    """What to compare these runs by, as (split, score): the first that every run has, else the first that one has."""
    main = next(iter(runs[0].task.metrics))
    for enough in (all, any):
        for name in (main, *WITHOUT_LABELS):
            for split in ("test", "eval"):
                if enough(run.score(split, name) is not None for run in runs):
                    return split, name
    return "eval", main


def metric_of(runs: Sequence[RunRecord], name: str) -> Metric:
    """What a score of these runs is called, and which way it is better."""
    found = {**WITHOUT_LABELS, **runs[0].task.metrics}[name]
    if any(run.config.get("labels_from_model") for run in runs):
        return dataclasses.replace(found, shown=f"{found.shown} by labels that a model made")
    return found


def best(runs: Sequence[RunRecord]) -> int | None:
    """The number of the run with the best score, the fastest one where several share it; None without scores."""
    if not runs:
        return None
    split, name = measure(runs)
    sign = 1 if metric_of(runs, name).higher_is_better else -1
    scored = [
        (sign * score, -(finite(run.result.get("train_seconds")) or 0.0), -number)
        for number, run in enumerate(runs)
        if (score := run.score(split, name)) is not None
    ]
    return -max(scored)[2] if scored else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; this is not a run of ftjax.")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line; an absent file is an empty one."""
    if not path.is_file():
        return []
    try:
        # Not splitlines(): texts may hold U+2028 and its like, which are no ends of lines in JSON.
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}).") from None
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # cut short by a kill
                break
            raise InputError(f"{path}: line {number} is not JSON.") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}: line {number} is not a JSON object.")
        found.append(value)
    return found
