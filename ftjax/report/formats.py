"""How a number is said to a person: one helper a kind, shared by the terminal's table and the page."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
"""Stands where a run did not measure something."""


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def integer(value: Any) -> str:
    """Such as 22,713,218."""
    number = finite(value)
    return MISSING if number is None else f"{round(number):,}"


def decimal(value: Any) -> str:
    """Such as 0.6235."""
    number = finite(value)
    return MISSING if number is None else f"{number:.4f}"


def percent(value: Any) -> str:
    """A share such as 0.8124 as 81.2 %."""
    number = finite(value)
    return MISSING if number is None else f"{100 * number:.1f} %"


def duration(value: Any) -> str:
    """Seconds, such as 235 ms, 1.39 s, 5 min 21 s or 2 h 5 min."""
    seconds = finite(value)
    if seconds is None:
        return MISSING
    if seconds < 0.9995:
        return f"{_three_digits(1000 * seconds)} ms"
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def memory(value: Any) -> str:
    """Bytes, such as 1.25 GB, in powers of 1000."""
    number = finite(value)
    if number is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{_three_digits(number) if unit != 'B' else round(number)} {unit}"
        number /= 1000
    return f"{_three_digits(number)} TB"


def _three_digits(number: float) -> str:
    """The number rounded to three significant digits, never in scientific notation."""
    rounded = float(f"{number:.3g}")  # first, as 9.996 gains a digit
    places = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:.{min(max(places, 0), 2)}f}"
