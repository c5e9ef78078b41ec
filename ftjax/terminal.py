"""What a person sees while a run goes on: progress on stderr, so that stdout holds only results."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ftjax.config import TrainConfig, flag
from ftjax.redact import redact
from ftjax.tasks import TASKS


class Terminal:
    """Lines and one live panel: a bar, below it how things stand. Where stderr is no terminal, a plain line now and then.

    quiet: nothing at all, as in all processes of a run but the first.
    """

    def __init__(self, *, every_seconds: float = 20.0, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.every_seconds = every_seconds
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._status: Callable[[], str] = str
        self._spoken = 0.0

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(redact(line), markup=False)

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a bar of `total` parts."""
        self.stop()
        self._name, self._total, self._done, self._spoken = name, total, done, time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task(name, total=total, completed=done)
            self._live = Live(get_renderable=self._panel, console=self.console, transient=True, refresh_per_second=4)
            self._live.start()

    def _panel(self) -> Group:
        return Group(self._bar or "", Text(self._status(), style="dim"))

    def doing(self, what: str) -> None:
        """Show what takes time now, such as compiling; the next `advance` takes its place."""
        self._status = lambda: what
        if self._live is not None:
            self._live.refresh()

    def advance(self, note: Callable[[], str] = str, *, by: int = 1) -> None:
        """Move the bar on. note: asked, maybe in another thread, whenever what is beside it is shown, such as the loss."""
        self._done += by
        self._status = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._spoken > self.every_seconds:
            self._spoken = time.monotonic()
            self.say(f"{self._name} {self._done}/{self._total} {note()}")

    def stop(self) -> None:
        """End the bar, if there is one."""
        self._status = str
        if self._live is not None:
            self._live.stop()
            self._live = self._bar = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def what_next(config: TrainConfig, *, predicts: bool) -> str:
    """What to do with a finished run, as commands to copy. predicts: whether its model does."""
    model = str(config.output / "model")
    given = [
        word
        for name in ("task", "text_column", "text_pair_column", "label_column")
        if (value := getattr(config, name)) != getattr(TrainConfig, name, None)
        for word in (flag(name), value)
    ]
    rows = str(config.test_file or config.eval_file or "FILE.csv")
    lines = {
        "Score it on rows": ["evaluate", "--model", model, "--file", rows, *given],
        "Ask it": ["predict", "some text", "--model", model, *(["--task", config.task] if config.task != TASKS[0] else [])],
        "Share it": ["export", "--checkpoint", str(config.output), "--output", "DIRECTORY", "--push-to-hub", "OWNER/NAME"],
    }
    if not predicts:
        lines = {"Fine-tune it": ["train", "--model", model, "--train-file", "FILE.csv", "--output", "DIRECTORY"]}
    return "\n".join(["Next:", *(f"  {what + ':':18}{shlex.join(['ftjax', *words])}" for what, words in lines.items())])
