"""Weights & Biases and Trackio, beside TensorBoard: the same numbers under the same names, such as train/loss."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from ftjax.config import TrainConfig
from ftjax.errors import InputError


class Trackers:
    """The runs that --tracker asks for. What the libraries print goes to stderr: stdout holds only results."""

    def __init__(self, config: TrainConfig, settings: Mapping[str, Any]) -> None:
        """settings: of config.json; `tracker_run` in it is by what a resumed run finds its own again."""
        self._runs: list[Any] = []
        for name in config.tracker:
            tracker = importlib.import_module(name)
            named: dict[str, Any] = {"project": config.tracker_project, "config": dict(settings), "resume": "allow"}
            if name == "wandb":
                named |= {"name": config.output.name, "id": settings["tracker_run"], "dir": str(config.output)}
            else:  # whose runs are known by their names
                named |= {"name": f"{config.output.name}-{settings['tracker_run']}"}
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    self._runs.append(tracker.init(**named))
            except Exception as error:  # of many kinds: no login, no network, a full disk
                self.close()
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"--tracker {name}: could not start ({reason}); mend that and run with --resume.") from error

    def write(self, values: Mapping[str, float], step: int) -> None:
        """One step's numbers."""
        for run in self._runs:
            with contextlib.redirect_stdout(sys.stderr):
                run.log(dict(values), step=step)

    def close(self) -> None:
        """Hand over what has not been sent yet."""
        for run in self._runs:
            with contextlib.redirect_stdout(sys.stderr):
                run.finish()
