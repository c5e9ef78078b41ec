"""Runs that differ only in their seed, taken together: mean, spread, and differences between settings seed by seed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftjax.report.formats import MISSING, duration, finite, integer, memory
from ftjax.report.runs import RunRecord, measure, metric_of
from ftjax.report.tables import say_score

if TYPE_CHECKING:
    from rich.table import Table

NOT_SETTINGS = {
    *("seed", "output", "resume", "json", "command", "device", "versions", "labels", "bucket_lengths", "files"),
    *("tracker", "tracker_project", "tracker_run", "push_to_hub", "private"),
    *("log_every", "save_every", "prefix_cache", "prefix_cache_memory_gb", "prefix_cache_disk_gb", "prefix_cache_dir"),
}
"""Keys of config.json in which the runs of one setting may differ."""


@dataclass(frozen=True)
class Setting:
    """Runs alike in everything but their seed. name: the method, and in what else the settings compared differ.

    scores: seed -> the score `metric` of `split`, of the runs that have one.
    """

    name: str
    runs: tuple[RunRecord, ...]
    split: str
    metric: str
    scores: dict[int, float]

    @property
    def measured(self) -> str:
        """Such as `eval accuracy`."""
        return f"{self.split} {metric_of(self.runs, self.metric).shown}"

    @property
    def directories(self) -> list[Path]:
        """Of its runs."""
        return [run.directory for run in self.runs]

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def standard_deviation(self) -> float | None:
        """Over seeds, of a sample; None for fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def score(self) -> str:
        """Such as `83.2 % ± 0.4 (3 seeds)`."""
        spread = f" ± {_amount(self.metric, self.standard_deviation)}" if self.standard_deviation is not None else ""
        seeds = f" ({len(self.scores)} seeds)" if len(self.scores) > 1 else ""
        return say_score(self.metric, self.mean) + spread + seeds

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        spread = {"mean": self.mean, "standard_deviation": self.standard_deviation}
        values = {"seeds": list(self.scores), "values": list(self.scores.values())}
        return {
            "setting": self.name,
            **{key: self.runs[0].config.get(key) for key in ("method", "learning_rate")},
            "scores": {"split": self.split, "metric": self.metric, **values, **spread},
        }


@dataclass(frozen=True)
class Difference:
    """One setting's scores less another's, of the seeds that both have. interval: 95 %, by Student's t; None for one seed."""

    first: Setting
    second: Setting
    differences: list[float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean lies with 95 % confidence, if a difference varies normally over seeds."""
        number = len(self.differences)
        if number < 2:
            return None
        from scipy.stats import t

        reach = float(t.ppf(0.975, number - 1)) * statistics.stdev(self.differences) / number**0.5
        return self.mean - reach, self.mean + reach

    @property
    def sentence(self) -> str:
        """For people."""
        metric, sign = self.first.metric, lambda value: f"{value:+.1f}" if _in_percent(metric) else f"{value:+.4f}"
        scale, unit = (100.0, " points") if _in_percent(metric) else (1.0, "")
        said = f"{self.first.name} less {self.second.name}: {sign(scale * self.mean)}{unit} of {self.first.measured}"
        if self.interval is None:
            return f"{said}, on one seed."
        low, high = (sign(scale * end) for end in self.interval)
        return f"{said}, seed by seed over {len(self.differences)} seeds (95 % from {low} to {high})."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = {"setting": self.first.name, "less": self.second.name}
        return {**names, "differences": self.differences, "mean": self.mean, "interval": self.interval}


def settings(runs: Sequence[RunRecord], *, split: str | None = None) -> list[Setting]:
    """The runs by setting, in the order of their first ones, with scores of `split`.

    Without one: of the evaluation rows, which are there to choose by, else of what all runs have.
    """
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    met = Counter[str]()
    for run in runs:
        setting = repr(sorted(_settings(run).items()))
        met[with_seed := f"{setting} {run.config.get('seed')}"] += 1
        groups.setdefault((setting, met[with_seed]), []).append(run)  # the same run again is no other seed
    usual, metric = measure(runs)
    own = str(runs[0].result.get("metric"))  # by which the runs chose their best epochs
    for where in (split,) if split else ("eval", "test"):
        if all(run.score(where, own) is not None for run in runs):
            usual, metric = where, own
            break
    split = split or usual
    found = []
    for group, name in zip(groups.values(), _names([group[0] for group in groups.values()]), strict=True):
        scored = {run.config.get("seed", 0): score for run in group if (score := run.score(split, metric)) is not None}
        found.append(Setting(name, tuple(group), split, metric, scored))
    return found


def best_setting(found: Sequence[Setting]) -> Setting:
    """The one with the best mean score, the first of equals; the first where none has a score."""
    sign = 1.0 if metric_of(found[0].runs, found[0].metric).higher_is_better else -1.0
    scored = [setting for setting in found if setting.mean is not None]
    return max(scored, key=lambda setting: sign * (setting.mean or 0.0), default=found[0])


def difference(first: Setting, second: Setting) -> Difference | None:
    """Seed by seed; None where the two have no seed in common."""
    common = [seed for seed in first.scores if seed in second.scores]
    return Difference(first, second, [first.scores[seed] - second.scores[seed] for seed in common]) if common else None


def seeds_table(found: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """Header and one row a setting: its score, what every seed gave, and what it cost on average."""
    header = ["setting", found[0].measured, "each seed", "trained parameters", "training time", "peak memory"]

    def cost(setting: Setting, key: str) -> float | None:
        values = [value for run in setting.runs if (value := finite(run.result.get(key))) is not None]
        return statistics.fmean(values) if values else None

    rows = [
        [
            setting.name,
            setting.score,
            ", ".join(f"{seed}: {say_score(setting.metric, value)}" for seed, value in setting.scores.items()) or MISSING,
            integer(setting.runs[0].result.get("trained_parameters")),
            duration(cost(setting, "train_seconds")),
            memory(cost(setting, "peak_memory_bytes")),
        ]
        for setting in found
    ]
    return header, rows


def settings_table(found: Sequence[Setting]) -> Table:
    """For the terminal, the best one in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = seeds_table(found)
    best = best_setting(found)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [number for number, title in enumerate(header) if title not in ("each seed", "trained parameters")]
    for number in shown:
        drawn.add_column(Text(header[number]), justify="right" if number else "left", overflow="fold")
    for setting, row in zip(found, rows, strict=True):
        style = "bold" if setting is best and len(found) > 1 else ""
        drawn.add_row(*(Text(row[number], style=style) for number in shown))
    return drawn


def _settings(run: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in NOT_SETTINGS}


def _names(firsts: Sequence[RunRecord]) -> list[str]:
    """The method of each, and the values of the keys in which settings of one method differ."""
    differing: list[str] = []
    for method in {run.method for run in firsts}:
        ours = [_settings(run) for run in firsts if run.method == method]
        differing += [key for key in ours[0] if any(other.get(key) != ours[0][key] for other in ours)]
    keys = [key for key in dict.fromkeys(key for run in firsts for key in run.config) if key in differing]
    found = [", ".join([run.method, *(f"{key} {_say(run.config.get(key))}" for key in keys)]) for run in firsts]
    alike = Counter(found)
    return [name if alike[name] == 1 else f"{name} ({run.directory.name})" for name, run in zip(found, firsts, strict=True)]


def _say(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_percent(metric: str) -> bool:
    return metric.endswith("accuracy")


def _amount(metric: str, value: float | None) -> str:
    """A spread in the unit of the score."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f}" if _in_percent(metric) else f"{value:.4f}"
