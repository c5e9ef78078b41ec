"""The three methods on the same data and seed: one table, one report."""

from __future__ import annotations

import gc
from typing import Any

import jax

from ftjax.config import CompareConfig
from ftjax.loop import fit
from ftjax.processes import is_first
from ftjax.report import read_run, table, write_report
from ftjax.terminal import Terminal


def compare(config: CompareConfig, terminal: Terminal) -> list[dict[str, Any]]:
    """Run every method that has not run yet; print the table on stderr, write report.html, return train's objects."""
    config.check()
    results = []
    for method in config.methods:
        terminal.say(f"\n{method}")
        results.append(fit(config.of(method), terminal))
        jax.clear_caches()  # so that the next method's peak memory is its own
        gc.collect()
    directories = [config.output / method for method in config.methods]
    if is_first():
        write_report(directories, config.output / "report.html")
    terminal.console.print(table([read_run(directory) for directory in directories]))
    terminal.say(f"Report: {config.output / 'report.html'}")
    return results
