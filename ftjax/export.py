"""A trained model written to a directory: at the end of a run, of one of its checkpoints, or of any model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from ftjax import digest, processes, rundir
from ftjax.card import write_card
from ftjax.checkpoint import Checkpoints, damage, steps_in
from ftjax.config import ExportFormat, TrainConfig
from ftjax.errors import InputError
from ftjax.prepare import Run, prepare
from ftjax.pretrained import Pretrained, load_pretrained, merge, save_adapter, save_pretrained
from ftjax.pretrained.adapter import locate
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import read_config
from ftjax.pretrained.program import save_savedmodel, save_stablehlo
from ftjax.pretrained.tensors import read_json
from ftjax.stacked import members, unstack
from ftjax.step import TrainState


def save_model(run: Run, state: TrainState, directory: Path, export_format: ExportFormat) -> None:
    """What a run has learnt, in a directory. Raises InputError for a format that cannot say it."""
    trained = {member for name in state.trainable for member in members(name)}
    params = {name: value for name, value in run.pretrained.params.items() if name not in trained} | state.trainable
    if jax.process_count() > 1:
        params = processes.kept_by_first((name, run.layout.put(name, value)) for name, value in params.items())
    params = unstack(params)
    if not processes.is_first():
        return
    if export_format == "adapter":
        save_adapter(run.pretrained, params, trained, directory, base=run.config.model)
    elif run.seen is not None:
        write_model(dataclasses.replace(run.seen.whole, params=run.seen.put_back(params)), directory, export_format)
    else:
        write_model(dataclasses.replace(run.pretrained, params=params), directory, export_format)


def write_model(pretrained: Pretrained, directory: Path, export_format: ExportFormat) -> None:
    """A model as a Hugging Face directory or as a program."""
    match export_format:
        case "stablehlo":
            save_stablehlo(pretrained, directory)
        case "savedmodel":
            save_savedmodel(pretrained, directory)
        case _:
            save_pretrained(pretrained, pretrained.params, directory)


def export_model(model: str, adapter: str | None, output: Path, export_format: ExportFormat | None) -> None:
    """Write a model, with an adapter merged, as a Hugging Face directory or as a program.

    Raises InputError for a model or an adapter that cannot be loaded, a program without a head, and an `output` that is not
    empty.
    """
    check_empty(output)
    if export_format == "adapter":
        raise InputError("--export-format adapter: is for what a run has learnt; give that with --checkpoint.")
    base, found = locate(model, adapter)
    config, raw_config, _ = read_config(model_directory(base), found)
    pretrained = load_pretrained(base, adapter=found)
    if not pretrained.labels and (config.causal or config.has_masked_lm):
        spoken = load_pretrained(base, adapter=found, causal_lm=config.causal, masked_lm=config.has_masked_lm)
        pretrained = pretrained if spoken.new else spoken
    pretrained = dataclasses.replace(pretrained, problem_type=raw_config.get("problem_type"))
    with rundir.disk_errors(output):
        write_model(merge(pretrained), output, export_format or "huggingface")


def check_empty(output: Path) -> None:
    """InputError where something is in the way of a new directory."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output}: not empty; choose another directory.")


def export(checkpoint: Path, output: Path, export_format: ExportFormat | None = None) -> None:
    """Write a run's best checkpoint, or the one of RUN/checkpoints/STEP, in the run's own format or another one.

    Raises InputError where there is no such checkpoint, or `output` holds something.
    """
    directory, step = checkpoint, None
    if checkpoint.parent.name == "checkpoints" and checkpoint.name.isdecimal():
        directory, step = checkpoint.parent.parent, int(checkpoint.name)
    if not directory.is_dir():
        raise InputError(f"--checkpoint {checkpoint}: no such directory.")
    if not (directory / "metrics.jsonl").is_file() and (directory.parent / "metrics.jsonl").is_file():
        raise InputError(f"--checkpoint {checkpoint}: a part of a run; give the run, {directory.parent}.")
    if inner := [path.parent.name for path in sorted(directory.glob("*/metrics.jsonl"))]:
        raise InputError(f"--checkpoint {checkpoint}: holds several runs; give one of them, such as {directory / inner[0]}.")
    saved = read_json(directory / "config.json")
    if "method" not in saved or "output" not in saved:
        raise InputError(f"--checkpoint {checkpoint}: {directory} is not a run of ftjax.")
    check_empty(output)
    config = TrainConfig.from_dict(saved)
    if export_format == "adapter":
        config = dataclasses.replace(config, export_format="adapter")  # its needs are then looked at with the rest
    digest.check_inputs(saved.get("files"), digest.of_inputs(config), config)
    kept = directory / "checkpoints"
    with rundir.disk_errors(directory):
        broken = {step: wrong for step in steps_in(kept) if (wrong := damage(kept / str(step)))}
    run = prepare(config.after_adaptation, lambda line: None, rundir.bucket_lengths(directory))
    checkpoints = Checkpoints(kept, higher_is_better=run.higher_is_better, read_only=True)
    steps = checkpoints.steps()
    chosen = checkpoints.best_step() if step is None else step
    if chosen is None or chosen not in steps:
        raise InputError(
            f"--checkpoint {checkpoint}: no such checkpoint; the run has {', '.join(map(str, steps)) or 'none'} (steps)."
        )
    if chosen in broken:
        others = ", ".join(str(other) for other in steps if other not in broken) or "none"
        raise InputError(
            f"--checkpoint {checkpoint}: that of step {chosen} cannot be used ({broken[chosen]}); whole are those of: {others}."
        )
    state, _ = checkpoints.restore(chosen, run.state_of(run.stage_of(chosen)))
    with rundir.disk_errors(output):
        save_model(run, state, output, export_format or config.export_format)
        result = read_json(directory / "result.json") if (directory / "result.json").is_file() else {}
        measured = result if result.get("best_step") == chosen else {}  # scores are those of the best step alone
        write_card(output, saved, measured, name=output.name)
