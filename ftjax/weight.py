"""A coefficient λ as asked for on the command line: a number, or a line from one number to another over the run."""

from __future__ import annotations

import dataclasses

from ftjax.errors import InputError

LARGEST = 3.4028234e38  # of float32


@dataclasses.dataclass(frozen=True)
class Weight:
    """`start` in the first step, `end` after the last; it is not known yet how many steps the run has."""

    start: float
    end: float

    @property
    def is_zero(self) -> bool:
        """Whether the term never counts, so that it can be left out."""
        return self.start == self.end == 0.0


def parse_weight(text: str, flag: str = "--self-supervised-weight") -> Weight:
    """ "0.1" (constant) or "linear:0->1" (a line over the run); InputError, naming the flag, for anything else."""
    kind, colon, ends = text.partition(":")
    parts = ends.split("->") if colon else [text, text]
    try:
        start, end = map(float, parts)
    except ValueError:
        start = end = -1.0
    if (colon and kind.strip() != "linear") or not (0.0 <= start <= LARGEST and 0.0 <= end <= LARGEST):  # nan is neither
        raise InputError(
            f"{flag} {text!r}: must be 0 or a positive number, such as 0.1, or a line over the run, such as 'linear:0->1'."
        )
    return Weight(start, end)
