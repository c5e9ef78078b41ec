"""What a person sees while a run goes on: progress on stderr, so that stdout holds only results."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ftjax.redact import redact


class Terminal:
    """Lines and one progress bar. Where stderr is no terminal, a plain line now and then takes the bar's place.

    quiet: nothing at all, as in all processes of a run but the first.
    """

    def __init__(self, *, every_seconds: float = 20.0, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.every_seconds = every_seconds
        self._bar: Progress | None = None
        self._spoken = 0.0

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(redact(line), markup=False)

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a progress bar."""
        self.stop()
        self._name, self._total, self._done, self._spoken = name, total, done, time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def advance(self, note: str = "", *, by: int = 1) -> None:
        """Move the bar on, with a note such as the loss."""
        self._done += by
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif time.monotonic() - self._spoken > self.every_seconds:
            self._spoken = time.monotonic()
            self.say(f"{self._name} {self._done}/{self._total} {note}")

    def stop(self) -> None:
        """End the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
