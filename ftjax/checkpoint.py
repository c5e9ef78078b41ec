"""Checkpoints with Orbax: what trains, the optimizer's state, the key and the run's progress, written atomically.

Frozen parameters are not written: they are in the model that the run started from. Data position is the step, since
the order of the data is a function of (seed, epoch).
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ftjax.errors import InputError
from ftjax.step import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save; what fails we say ourselves


class Checkpoints:
    """The checkpoints of one run: the last two and the best are kept, older ones go once a newer one is whole.

    Saving is asynchronous; a directory bears a step's number only when all of it has been written.
    """

    def __init__(self, directory: Path, *, higher_is_better: bool, read_only: bool = False) -> None:
        def rank(metrics: dict[str, float]) -> tuple[float, float]:
            """For sorting, best last; of equals the latest is best, as in `ftjax.loop`."""
            return metrics["value"] if higher_is_better else -metrics["value"], metrics["step"]

        keep = [policies.LatestN(n=2), policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=rank,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=True,
        )
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, state: TrainState, progress: dict[str, Any], value: float | None = None) -> None:
        """Start writing the state and a JSON-ready dictionary; value is the metric that picks the best, if measured."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = _arrays(state)
        if jax.default_backend() == "cpu":  # the next step may donate buffers that a view for the writer still shows
            arrays = jax.tree.map(jnp.copy, arrays)
        metrics = None if value is None else {"value": value, "step": step}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress))
        try:
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:
            raise _write_error(self.directory, error) from error

    def wait(self) -> None:
        """Until all that was started has been written; InputError if it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _write_error(self.directory, error) from error

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the best evaluation, or the newest where none was made, or None."""
        return self._manager.best_step()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, progress) of a step. `state` gives shapes, shardings and the frozen parameters."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _arrays(state))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        arrays = dict(restored["state"])
        key = jax.random.wrap_key_data(arrays.pop("key"), impl=jax.random.key_impl(state.key))
        return dataclasses.replace(state, key=key, **arrays), restored["progress"]

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        self._manager.close()


def _arrays(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state."""
    return {
        "step": state.step,
        "key": jax.random.key_data(state.key),
        "trainable": state.trainable,
        "optimizer_state": state.optimizer_state,
    } | ({"teacher": state.teacher} if state.teacher else {})


def _write_error(directory: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(
        f"{directory}: the checkpoint could not be written ({reason} ...); the one before it is whole. "
        "Free space or mend the disk, then run again with --resume."
    )
