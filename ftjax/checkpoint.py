"""Checkpoints with Orbax: what trains, the optimizer's state, the key and the run's progress, written atomically.

Frozen parameters are not written: they are in the model that the run started from. Data position is the step, since
the order of the data is a function of (seed, epoch).

Beside the files lies a list of their digests: Orbax notices files that are missing or cut short, but most bits that flip in
an array's values it restores as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from ftjax import digest
from ftjax.errors import InputError
from ftjax.step import TrainState

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

PACKAGES = ("orbax.checkpoint",)
"""What is imported when the first checkpoint is read or written, which takes a while."""
DIGESTS = "sha256.json"
"""The digests of a checkpoint's files but for this one and those that Orbax still changes when it renames the directory."""
LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save; what fails we say ourselves


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a checkpoint, RUN/checkpoints/STEP; None where all are as they were written.

    Raises OSError where one cannot be read.
    """
    try:
        written = json.loads((directory / DIGESTS).read_bytes())
    except FileNotFoundError:
        return f"no {DIGESTS}"
    except ValueError:
        return f"{DIGESTS} is damaged"
    if not isinstance(written, dict) or not written:
        return f"{DIGESTS} is damaged"
    found = digest.of_directory(directory, leave_out=(DIGESTS, *LATER))
    return next((f"{name} is {_how(name, found)}" for name in written if found.get(name) != written[name]), None)


def _how(name: str, found: digest.Digests) -> str:
    return "damaged" if name in found else "missing"


def steps_in(directory: Path) -> list[int]:
    """The steps of the checkpoints in RUN/checkpoints, whole or not, ascending."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def set_damaged_aside(directory: Path, say: Callable[[str], None]) -> None:
    """Move the checkpoints in RUN/checkpoints that are not whole to RUN/damaged-STEP, saying so; what is left can be used."""
    if jax.process_index() == 0:
        for step in reversed(steps_in(directory)):
            if wrong := damage(directory / str(step)):
                aside = directory.parent / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier resumption
                (directory / str(step)).rename(aside)
                before = max((other for other in steps_in(directory) if other < step), default=None)
                instead = "there is none before it" if before is None else f"the one before it, of step {before}, is there"
                say(f"{directory / str(step)}: a checkpoint that cannot be used ({wrong}) is now {aside}; {instead}.")
    if jax.process_count() > 1:  # the others must not open what is about to go
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")


class Checkpoints:
    """The checkpoints of one run: the last two and the best are kept, older ones go once a newer one is whole.

    Saving is asynchronous; a directory bears a step's number only when all of it has been written. Orbax is imported, and the
    directory opened or made, when there is something to read or to write.
    """

    def __init__(self, directory: Path, *, higher_is_better: bool, read_only: bool = False) -> None:
        self.directory, self._higher_is_better, self._read_only = directory.absolute(), higher_is_better, read_only

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        def rank(metrics: dict[str, float]) -> tuple[float, float]:
            """For sorting, best last; of equals the latest is best, as in `ftjax.loop`."""
            return metrics["value"] if self._higher_is_better else -metrics["value"], metrics["step"]

        keep = [policies.LatestN(n=2), policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=rank,
            cleanup_tmp_directories=not self._read_only,
            create=not self._read_only,
            read_only=self._read_only,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        try:
            return ocp.CheckpointManager(self.directory, options=options)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self.directory, error) from error

    @property
    def _opened(self) -> bool:
        return "_manager" in vars(self)

    @property
    def _exists(self) -> bool:
        return self._opened or self.directory.exists()

    def save(self, state: TrainState, progress: dict[str, Any], value: float | None = None) -> None:
        """Start writing the state and a JSON-ready dictionary; value is the metric that picks the best, if measured."""
        import orbax.checkpoint as ocp

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
            if self._opened:
                self._manager.wait_until_finished()
        except Exception as error:
            raise _write_error(self.directory, error) from error

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step() if self._exists else None

    def best_step(self) -> int | None:
        """The step of the best evaluation, or the newest where none was made, or None."""
        return self._manager.best_step() if self._exists else None

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps()) if self._exists else []

    def _seal(self) -> None:
        """Write the digests: Orbax calls this when all else is written, before the directory gets its step's number."""
        for directory in self.directory.glob("*.orbax-checkpoint-tmp*"):
            digests = digest.of_directory(directory, leave_out=(DIGESTS, *LATER))
            (directory / DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, progress) of a step. `state` gives shapes, shardings and the frozen parameters.

        Raises InputError for a checkpoint that is damaged or of another model.
        """
        import orbax.checkpoint as ocp

        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _arrays(state))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # tensorstore's and Orbax's own, of many kinds
            raise _damaged(self.directory / str(step), error) from error
        arrays = dict(restored["state"])
        key = jax.random.wrap_key_data(arrays.pop("key"), impl=jax.random.key_impl(state.key))
        return dataclasses.replace(state, key=key, **arrays), restored["progress"]

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        if self._opened:
            self._manager.close()


def _arrays(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state."""
    return {
        "step": state.step,
        "key": jax.random.key_data(state.key),
        "trainable": state.trainable,
        "optimizer_state": state.optimizer_state,
    } | ({"teacher": state.teacher} if state.teacher else {})


def _damaged(directory: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(f"{directory}: cannot be restored ({reason} ...); take it away, so that the one before it is used.")


def _write_error(directory: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(
        f"{directory}: the checkpoint could not be written ({reason} ...); the one before it is whole. "
        "Free space or mend the disk, then run again with --resume."
    )
