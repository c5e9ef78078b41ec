"""What is the user's mistake and how it is said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 2000  # of a message, in characters


class InputError(Exception):
    """A mistake in what the user gave.

    Its message is one line: what is wrong, where, and the mend; the command line prints it and exits 2. What a file brought
    into it that is no plain character, such as a line's end or a terminal's escape, is spelled out, and the middle of what
    is very long is left out.
    """

    def __init__(self, message: object) -> None:
        text = str(message)
        text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a library raises inside as an InputError that says `what`, and why.

    For one whose errors have no type to go by: that of tokenizers raises bare Exceptions for malformed files, and where it
    trips over one itself a PanicException, which is not even an Exception.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what} ({reason[:300]}).") from None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of the choices, or an empty string when none is near.

    Nearest is one of which the word has the initials, as `--lr` of `--learning-rate`; else the one that is spelled most alike.
    """
    choices = list(choices)
    short = [choice for choice in choices if "".join(part[0] for part in re.findall(r"[^\W_]+", choice)) == word.strip("-")]
    near = short or difflib.get_close_matches(word, choices, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Stopped(Exception):
    """A signal ended a run after its state was saved; `--resume` goes on from there. The command line exits 75."""

    def __init__(self, signal_number: int, step: int, *, resume: bool) -> None:
        """resume: whether this run was started with --resume: then the same command goes on."""
        again = "the same command goes on" if resume else "go on with --resume"
        super().__init__(f"Stopped by signal {signal_number} after step {step}, state saved; {again}.")
