"""Weights & Biases and Trackio, beside TensorBoard: the same numbers under the same names, such as train/loss."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ftjax.config import TrainConfig
from ftjax.errors import InputError


class Trackers:
    """The runs that --tracker asks for. What the libraries print goes to stderr: stdout holds only results.

    A tracker that does not start is a mistake to mend; one that fails later is said in a line and left out from then on, for
    metrics.jsonl has the numbers and the training is worth more.
    """

    def __init__(self, config: TrainConfig, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """settings: of config.json; `tracker_run` in it is by what a resumed run finds its own again. say: tells the user."""
        self._runs: dict[str, Any] = {}
        self._say = say
        for name in config.tracker:
            named: dict[str, Any] = {"project": config.tracker_project, "config": dict(settings), "resume": "allow"}
            if name == "wandb":
                named |= {"name": config.output.name, "id": settings["tracker_run"], "dir": str(config.output)}
            else:  # whose runs are known by their names
                named |= {"name": f"{config.output.name}-{settings['tracker_run']}"}
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    self._runs[name] = importlib.import_module(name).init(**named)
            except Exception as error:  # of many kinds: no login, no network, a full disk
                self.close()
                reason = _reason(error)
                raise InputError(f"--tracker {name}: could not start ({reason}); mend that and run with --resume.") from error

    def write(self, values: Mapping[str, float], step: int) -> None:
        """One step's numbers."""
        self._each("log", dict(values), step=step)

    def close(self) -> None:
        """Hand over what has not been sent yet."""
        self._each("finish")
        self._runs = {}

    def _each(self, method: str, *arguments: Any, **named: Any) -> None:
        for name, run in list(self._runs.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    getattr(run, method)(*arguments, **named)
            except Exception as error:
                del self._runs[name]
                self._say(f"--tracker {name}: failed ({_reason(error)}); it gets no more numbers, metrics.jsonl has them all.")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
