"""What is the user's mistake and how it is said."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A mistake in what the user gave.

    Its message is one line: what is wrong, where, and the mend; the command line prints it and exits 2.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of the choices, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Stopped(Exception):
    """A signal ended a run after its state was saved; `--resume` goes on from there. The command line exits 75."""

    def __init__(self, signal_number: int, step: int, output: str) -> None:
        super().__init__(f"Stopped by signal {signal_number} after step {step}, state saved; go on with --resume.")
