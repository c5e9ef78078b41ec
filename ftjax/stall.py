"""A time limit for what may never come back: a write to a file system that does not answer."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End the process with one line and exit code 2 if what is inside takes longer than that.

    Nothing can interrupt a system call that waits for a dead disk, so no exception would do: the process goes, from a
    thread beside it. A checkpoint under way is then not whole, and not used.
    """

    def give_up() -> None:
        if sys.stderr.isatty():
            print("\033[?25h", end="", file=sys.stderr)  # a progress bar hides the cursor
        print(f"\nftjax: {what}: no answer from the file system for {seconds:g} s; {MEND}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


MEND = "mend that and run again with --resume, or allow more with --write-timeout."
