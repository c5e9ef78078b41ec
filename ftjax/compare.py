"""Several methods, learning rates and seeds on the same data: one table, one report."""

from __future__ import annotations

import gc
from typing import Any

import jax

from ftjax import rundir
from ftjax.config import CompareConfig, TrainConfig
from ftjax.loop import Programs, fit, score_test_rows
from ftjax.processes import is_first
from ftjax.report import RunRecord, read_run, table, write_report
from ftjax.report.runs import best
from ftjax.report.seeds import best_setting, difference, settings, settings_table
from ftjax.terminal import Terminal, what_next


def compare(config: CompareConfig, terminal: Terminal) -> list[dict[str, Any]] | dict[str, Any]:
    """Run what has not run yet, print a table on stderr and write report.html.

    Returns train's objects, one a method; of a sweep what `sweep` says.
    """
    config.check()
    results: list[dict[str, Any]] = []
    runs: list[TrainConfig] = []
    for method in config.methods:
        programs: Programs = {}  # of one method: so that the next one's peak memory is its own
        for run in config.runs(method):
            terminal.say(f"\n{run.output.name}")
            results.append(fit(run, terminal, programs=programs, score_test=not config.is_sweep))
            runs.append(run)
            gc.collect()
        jax.clear_caches()
    found = sweep(config, runs, terminal) if config.is_sweep else results
    records = [read_run(run.output) for run in runs]
    if is_first():
        write_report([run.output for run in runs], config.output / "report.html")
    if not config.is_sweep:
        terminal.console.print(table(records))
    terminal.say(f"Report: {config.output / 'report.html'}")
    chosen = best_setting(settings(records)).directories if config.is_sweep else [records[best(records) or 0].directory]
    winner = next(run for run in runs if run.output in chosen)
    terminal.say(what_next(winner, predicts=rundir.predicts(winner.output)))
    return found


def sweep(config: CompareConfig, runs: list[TrainConfig], terminal: Terminal) -> dict[str, Any]:
    """Compare the settings of finished runs, and score the test rows with the best one, chosen by the evaluation rows.

    {"settings": each with its scores over seeds, "differences": the best less each other one, seed by seed, "best": the
    setting, with "test": scores over seeds, where there are test rows, "runs": the directories}; also in sweep.json.
    """
    records = [read_run(run.output) for run in runs]
    found = settings(records)
    terminal.console.print(settings_table(found))
    best = best_setting(found)
    said: dict[str, Any] = {
        "settings": [setting.to_dict() for setting in found],
        "differences": [pair.to_dict() for other in found if other is not best and (pair := difference(best, other))],
        "best": best.to_dict(),
        "runs": [str(run.output) for run in runs],
    }
    for other in found:
        if other is not best and (pair := difference(best, other)):
            terminal.say(pair.sentence)
    if len(found) > 1:
        terminal.say(f"Best by {best.measured}: {best.name}.")
    if before := [other.name for other in found if other is not best and any("test" in run.result for run in other.runs)]:
        terminal.say(
            f"Before this grid was larger, the test rows were scored with {', '.join(before)}: they are no longer new."
        )
    if config.test_file or config.test_split:
        programs: Programs = {}
        tested: list[RunRecord] = []
        for run in runs:
            if run.output in best.directories:
                score_test_rows(run, terminal, programs)
                tested.append(read_run(run.output))
        said["best"]["test"] = settings(tested, split="test")[0].to_dict()["scores"]
        terminal.say(f"The test rows, scored with this setting alone: {settings(tested, split='test')[0].score}.")
    if is_first():
        rundir.write_json(config.output / "sweep.json", said)
    return said
