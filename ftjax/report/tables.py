"""The comparison of runs, as rows of text and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftjax.report.formats import decimal, duration, integer, memory, percent
from ftjax.report.runs import RunRecord, best, measure, metric_of, names

if TYPE_CHECKING:
    from rich.table import Table


def say_score(name: str, value: float | None) -> str:
    """A score in its usual form: accuracies in percent, the others as decimals."""
    return percent(value) if name.endswith("accuracy") else decimal(value)


def comparison(runs: Sequence[RunRecord], *, more_scores: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and one row a run: the score that decides, size, time and memory; optionally the other scores too."""
    split, main = measure(runs)
    others = [name for name in runs[0].task.metrics if more_scores and name not in (main, "loss")]
    others = [name for name in others if any(run.score(split, name) is not None for run in runs)]
    header = ["method", f"{split} {metric_of(runs, main).shown}", *(metric_of(runs, name).shown for name in others)]
    header += ["trained parameters", "step time", "training time", "peak memory"]
    rows = [
        [
            name,
            *(say_score(score, run.score(split, score)) for score in (main, *others)),
            integer(run.result.get("trained_parameters")),
            duration(run.result.get("step_seconds")),
            duration(run.result.get("train_seconds")),
            memory(run.result.get("peak_memory_bytes")),
        ]
        for name, run in zip(names(runs), runs, strict=True)
    ]
    return header, rows


def table(runs: Sequence[RunRecord]) -> Table:
    """The comparison for the terminal, one row a run, the best one in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = comparison(runs)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(header):
        # Headings and names break, numbers never: the table fits 80 columns.
        drawn.add_column(Text(title.replace(" ", "\n")), justify="right" if number else "left", no_wrap=number > 0)
    winner = best(runs) if len(runs) > 1 else None
    for number, row in enumerate(rows):
        # Text, as a plain string would have its [brackets] read as markup.
        drawn.add_row(*(Text(cell, style="bold" if number == winner else "") for cell in row))
    return drawn
