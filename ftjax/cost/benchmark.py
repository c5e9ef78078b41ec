"""Throughput on this machine: the training step, the pipeline around it, and PyTorch's counterpart timed in turn with it."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import launch, machine
from ftjax.config import BenchmarkConfig
from ftjax.cost.bare import bare_run, initial_params, random_rows, shape_of
from ftjax.cost.flops import FORMULA, model_flops, program_flops
from ftjax.data.batches import batches, make_batch
from ftjax.data.prefetch import prefetch
from ftjax.errors import InputError
from ftjax.models.dots import dot
from ftjax.models.shapes import SHAPES
from ftjax.partition import labels_of
from ftjax.prefix import attached
from ftjax.prepare import Run, prepare
from ftjax.pretrained.load import read_config
from ftjax.step import train_step

IDLE = 0.05  # seconds between the two sides: the other one's threads spin for a while after their work


def benchmark(config: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """What --json prints: times of steps after compilation, each waited for. Raises InputError for a user's mistake."""
    config.check()
    if config.train_file is None:
        _, model_config = shape_of(config)
        rows = random_rows(config.batch_size * config.steps, config.max_length, model_config.vocab_size, config.num_labels)
        run = bare_run(config, rows, jax.devices(), None, lambda line: None)
        run = dataclasses.replace(run, pretrained=dataclasses.replace(run.pretrained, params=initial_params(run)))
    elif config.model in SHAPES:
        raise InputError(f"--model {config.model}: a shape has no tokenizer for --train-file; give a directory or a hub id.")
    else:
        run = prepare(config, say)
    trainer = Trainer(run)
    batch = full_batch(run)
    rival = TorchStep(run) if config.against else None
    seconds, theirs = [], []
    with rival or open(os.devnull) as _:
        say(f"Compiling for {machine.device_description()} ...")
        machine.reset_peak_memory()
        for _ in range(2):
            trainer.step(batch)
        if rival:
            rival.steps(2)
        for _ in range(config.steps):
            seconds.append(trainer.step(batch))
            if rival:
                time.sleep(IDLE)
                theirs += rival.steps(1)
                time.sleep(IDLE)
    memory = machine.peak_memory_bytes()
    compiling = trainer.program.seconds
    if config.profile is not None:
        with jax.profiler.trace(str(config.profile)):
            for _ in range(3):
                trainer.step(batch)
        say(f"Trace: {config.profile}")
    peak = matmul_flops(config.precision)
    devices, step = len(jax.devices()), statistics.median(seconds)
    stage, length = run.stages[0], run.data.buckets[-1]
    needed = model_flops(
        stage.model, labels_of(stage.treatments), stage.objective, config.batch_size, length, prefix=stage.prefix
    )
    result: dict[str, Any] = {
        "model": config.model,
        "device": machine.device_description(),
        "devices": devices,
        "huge_pages": launch.one_heap(),
        **{name: getattr(config, name) for name in ("method", "precision", "batch_size", "gradient_accumulation", "sharding")},
        "train_parameters": config.spec,
        "length": length,
        "step_seconds": step,
        "step_seconds_all": seconds,
        "examples_per_second": config.batch_size / step,
        "tokens_per_second": config.batch_size * length / step,
        "mfu": needed / (step * peak * devices),
        "mfu_formula": FORMULA,
        "model_flops": needed,
        "program_flops": program_flops(train_step, run.new_state(0, run.pretrained.params), batch),
        "matmul_flops_per_second": peak,
        "compile_seconds": compiling,
        "peak_memory_bytes": memory,
        "pipeline": pipeline(trainer, config),
    }
    if rival:
        ratios = [b / a for a, b in zip(seconds, theirs, strict=True)]
        result["against"] = {
            **rival.versions,
            "step_seconds": statistics.median(theirs),
            "step_seconds_all": theirs,
            "ratio": statistics.median(ratios),
            "ratio_spread": [min(ratios), max(ratios)],
        }
    return result


class Trainer:
    """The state of a run and the program that trains it, as `ftjax train` has them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.program = run.train_program()
        self.state = run.state_of(0)

    def start(self, batch: dict[str, Any]) -> Any:
        """Begin a step; its metrics, which may still be on their way."""
        state, metrics = self.program(dataclasses.replace(self.state, frozen={}), self.state.frozen, batch)
        self.state = dataclasses.replace(state, frozen=self.state.frozen)
        return metrics

    def step(self, batch: dict[str, Any]) -> float:
        """Seconds of a step from the batch on the host to the last new parameter."""
        start = time.perf_counter()
        metrics = self.start(batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


def full_batch(run: Run) -> dict[str, Any]:
    """A batch of random rows without any padding, as the step takes it."""
    stage, size, length = run.stages[0], run.config.batch_size, run.data.buckets[-1]
    classes = max(1, len(run.data.labels))
    rows = random_rows(size, length, stage.model.config.vocab_size, classes, shortest=length)
    batch = make_batch(run.data.task.made_up(rows), np.arange(size), length, size, run.data.pad_token_id)
    return attached(stage.model, batch, random_prefix(run, batch)) if stage.prefix else batch


def random_prefix(run: Run, batch: dict[str, Any]) -> np.ndarray:
    """Numbers in the place of what frozen layers would have made of a batch."""
    shape = attached(run.stages[0].model, batch)["prefix"].shape
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def pipeline(trainer: Trainer, config: BenchmarkConfig) -> dict[str, Any]:
    """Batches made by a thread, steps one ahead, metrics read: an epoch as training runs it, once all lengths are compiled."""
    run, data = trainer.run, trainer.run.data

    def epoch(number: int) -> Any:
        source = batches(
            data.train, data.buckets, config.batch_size, pad_token_id=data.pad_token_id, seed=config.seed, epoch=number
        )
        if run.stages[0].prefix:
            return (attached(run.stages[0].model, batch, random_prefix(run, batch)) for batch in source)
        return source

    lengths = set()
    for batch in epoch(0):
        if (shape := tuple(value.shape for value in batch.values())) not in lengths:
            lengths.add(shape)
            trainer.step(batch)
    examples = steps = 0
    waiting, metrics = 0.0, None
    start = last = time.perf_counter()
    with closing(prefetch(epoch(1))) as source:
        for batch in source:
            waiting += time.perf_counter() - last
            before, metrics = metrics, trainer.start(batch)
            if before is not None:
                jax.device_get(before)
            examples, steps = examples + int((batch["example_ids"] >= 0).sum()), steps + 1
            last = time.perf_counter()
            if steps == 10 * config.steps:
                break
    jax.block_until_ready((trainer.state, metrics))
    seconds = time.perf_counter() - start
    mean = float(data.train.lengths.mean())
    return {
        "examples_per_second": examples / seconds,
        "tokens_per_second": examples * mean / seconds,
        "data_wait_share": waiting / seconds,
        "mean_length": mean,
        "bucket_lengths": list(data.buckets),
        "steps": steps,
        "compilations": len(trainer.program.programs),
    }


def matmul_flops(precision: str) -> float:
    """FLOP/s of one device on large square matrix products in a dtype, summed in float32: the best of several runs."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    dtype = jnp.dtype(precision)
    a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
    product = jax.jit(lambda a, b: dot("mk,kn->mn", a, b, dtype))
    jax.block_until_ready(product(a, b))
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


class TorchStep:
    """PyTorch's counterpart of a run's step, in a process of its own: transformers' classifier, AdamW (fused), autocast."""

    def __init__(self, run: Run) -> None:
        config, stage = run.config, run.stages[0]
        assert isinstance(config, BenchmarkConfig)
        if [term.name for term in stage.objective] != ["classification"] or stage.model.lora is not None:
            raise InputError(
                "--against torch: of classification only --method full and partial without lora have a counterpart in PyTorch."
            )
        source, model_config = shape_of(config)
        if model_config.model_type != "bert":
            raise InputError(
                f"--against torch: {config.model} is of {model_config.model_type}; only bert has a counterpart here."
            )
        _, raw, table = read_config(source)
        known = {field.name for field in dataclasses.fields(model_config)}
        rates = {name: getattr(stage.model.config, name) for name in known if name.endswith(("_dropout", "_dropout_prob"))}
        settings = {
            "config": {name: value for name, value in raw.items() if name in known} | rates,
            "num_labels": len(run.data.labels),
            "trained": [table.theirs(name)[0] for name, treatment in stage.treatments.items() if treatment.trained],
            "batch_size": config.batch_size,
            "length": run.data.buckets[-1],
            "gradient_accumulation": config.gradient_accumulation,
            "max_gradient_norm": config.max_gradient_norm,
            "bfloat16": config.precision == "bfloat16",
            "gpu": jax.default_backend() == "gpu",
        }
        script = Path(__file__).with_name("torch_step.py")
        plain = {name: value for name, value in os.environ.items() if name != launch.VARIABLE}  # as its user would start it
        try:
            self._process = subprocess.Popen(
                [config.torch_python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=plain,
            )
        except OSError as error:
            raise InputError(f"--torch-python {config.torch_python}: cannot be run ({error.strerror}).") from None
        self.versions: dict[str, Any] = self._ask(json.dumps(settings))

    def steps(self, number: int) -> list[float]:
        """Seconds of as many steps."""
        return self._ask(str(number))

    def _ask(self, line: str) -> Any:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = process.communicate()[1].strip().splitlines() or ["no message"]
            raise InputError(
                f"--against torch: {process.args[0]!s} failed ({lines[-1]}); "  # type: ignore[index]
                "name a Python with torch and transformers: --torch-python."
            )
        return json.loads(answer)

    def __enter__(self) -> TorchStep:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def show_benchmark(found: dict[str, Any]) -> None:
    """The figures for people, on stdout."""
    print(
        f"{found['model']} on {found['device']}: {found['method']}, trains {found['train_parameters']}, {found['precision']},"
    )
    pages = "on" if found["huge_pages"] else "off"
    print(f"batch {found['batch_size']} x {found['length']} tokens without padding; huge pages {pages}\n")
    line("step", milliseconds(found))
    line("throughput", f"{found['examples_per_second']:,.1f} examples/s, {found['tokens_per_second']:,.0f} tokens/s")
    peak = found["matmul_flops_per_second"] / 1e9
    line("MFU", f"{found['mfu']:.3f} of {peak:,.0f} GFLOP/s a device, measured on large matmuls")
    line("", f"= {found['mfu_formula']}")
    line("compilation", f"{found['compile_seconds']:.1f} s")
    line("peak memory", f"{found['peak_memory_bytes'] / 1e9:.2f} GB")
    flow = found["pipeline"]
    line(
        "pipeline", f"{flow['examples_per_second']:,.1f} examples/s, {flow['tokens_per_second']:,.0f} tokens/s without padding"
    )
    lengths = f"mean length {flow['mean_length']:.1f}, padded to {', '.join(map(str, flow['bucket_lengths']))}"
    line("", f"{lengths}; {100 * flow['data_wait_share']:.1f} % of the time waits for data")
    if "against" in found:
        rival = found["against"]
        line("PyTorch", f"{milliseconds(rival)}, torch {rival['torch']}, {rival['threads']} threads")
        low, high = rival["ratio_spread"]
        line("", f"takes {rival['ratio']:.2f} times as long (median of turns; {low:.2f} to {high:.2f})")


def line(name: str, text: str) -> None:
    """One figure."""
    print(f"{name:13}{text}")


def milliseconds(found: dict[str, Any]) -> str:
    """Median and spread of the timed steps."""
    seconds = [1000 * each for each in found["step_seconds_all"]]
    return f"{1000 * found['step_seconds']:,.1f} ms (median of {len(seconds)}; {min(seconds):,.1f} to {max(seconds):,.1f})"
