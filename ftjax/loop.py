"""fit(): the one place with side effects — time, disk, terminal, signals."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import platform
import shlex
import signal
import statistics
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

import ftjax
from ftjax import checkpoint, digest, machine, processes, rundir, shares
from ftjax.card import write_card
from ftjax.checkpoint import Checkpoints, damage, set_damaged_aside
from ftjax.config import TrainConfig
from ftjax.data.files import Rows
from ftjax.data.packing import batch_rows
from ftjax.data.prefetch import prefetch
from ftjax.data.tokenize import Examples
from ftjax.errors import InputError, Stopped
from ftjax.evaluation import all_outputs
from ftjax.export import save_model
from ftjax.parallel import Compiled
from ftjax.partition import count
from ftjax.prefix import Attach, FrozenPrefix, Limits, prefix_step, unchanged
from ftjax.prepare import Run, prepare
from ftjax.pretrained import hub
from ftjax.pretrained.tensors import read_json
from ftjax.report import figures
from ftjax.report.formats import duration, memory
from ftjax.stall import within
from ftjax.step import Metrics, eval_step
from ftjax.terminal import Terminal
from ftjax.trackers import Trackers

SECONDS = ("load", "compile", "prefix", "data_wait", "step", "eval", "save")
"""Where a run's time goes, as told in result.json and at the end of the log."""
MOST_SKIPPED = 10
"""With --nonfinite skip, so many updates left out one after the other end the run: the model will not come back."""


@dataclasses.dataclass
class Progress:
    """What besides the state a resumed run must know. Everything is JSON-ready.

    window: sums and weights since the last line of metrics.jsonl. best: the best evaluation's step and scores so far.
    worse: evaluations since then. seconds: where time went, over all processes. examples: rows trained on.
    skipped: updates left out by --nonfinite skip; in_a_row: how many of them came last.
    """

    window: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_step: int = 0
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    worse: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    examples: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def add(self, metrics: dict[str, tuple[float, float]]) -> None:
        """Take one step's metrics into the window."""
        for name, (total, weight) in metrics.items():
            old = self.window.setdefault(name, [0.0, 0.0])
            old[0] += total
            old[1] += weight

    def take(self) -> dict[str, float]:
        """The window's averages; a new window begins."""
        averages = {name: total / weight for name, (total, weight) in self.window.items() if weight > 0}
        self.window = {}
        return averages


@dataclasses.dataclass(frozen=True)
class StagePrograms:
    """What a stage of a run compiles."""

    train: Compiled
    eval: Compiled
    predict: Compiled
    prefix: Compiled


Programs = dict[Any, StagePrograms]
"""The programs of several runs in one process: what decides them -> the programs. Runs of a sweep share one such dictionary."""


def fit(
    config: TrainConfig, terminal: Terminal, *, programs: Programs | None = None, score_test: bool = True
) -> dict[str, Any]:
    """Train as the config says and return what result.json holds.

    programs: those of earlier runs, which this one adds its own to. score_test: False leaves the test rows for
    `score_test_rows`; they are read and checked all the same.
    Raises InputError for a user's mistake, and `Stopped` when a signal ended the run after its state was saved.
    """
    start = time.perf_counter()
    machine.reset_peak_memory()
    config.check()
    if config.push_to_hub is not None:
        hub.check_push(config.push_to_hub)
    resuming = rundir.check(config)
    processes.wait_for_all(f"--output {config.output}")  # the first one writes there from now on
    if resuming and (config.output / "result.json").is_file():
        terminal.say(f"{config.output}: this run is complete; nothing to do.")
        share(config, terminal)
        return json.loads((config.output / "result.json").read_text(encoding="utf-8"))
    programs = {} if programs is None else programs
    inputs = processes.first_says(lambda: digested(config, resuming=resuming))
    with shares.directory(config.output) as shared:
        run = prepare(config, terminal.say, rundir.bucket_lengths(config.output) if resuming else (), shared)
        if processes.is_first():
            with rundir.disk_errors(config.output), within(config.write_timeout, f"--output {config.output}"):
                config.output.mkdir(parents=True, exist_ok=True)
        processes.wait_for_all(f"directory of --output {config.output}")
        with rundir.disk_errors(config.output), rundir.owned(config.output) if processes.is_first() else nullcontext():
            result = _fit(config, terminal, run, inputs, resuming, start, programs, score_test, shared)
    share(config, terminal)
    return result


def share(config: TrainConfig, terminal: Terminal) -> None:
    """Upload a finished run's model where --push-to-hub asks for that. InputError where the hub does not take it."""
    if config.push_to_hub is not None and processes.is_first():
        terminal.say(f"On the hub: {hub.push(config.output / 'model', config.push_to_hub, private=config.private)}")


def _fit(
    config: TrainConfig,
    terminal: Terminal,
    run: Run,
    inputs: dict[str, digest.Digests],
    resuming: bool,
    start: float,
    programs: Programs,
    score_test: bool,
    shared: Path | None,
) -> dict[str, Any]:
    """`fit` from the first write on."""
    if not resuming and processes.is_first():
        if (config.output / "config.json").exists():
            raise InputError(f"--output {config.output}: another run began there meanwhile; choose another directory.")
        with within(config.write_timeout, f"--output {config.output}"):
            rundir.write_json(config.output / "config.json", describe(config, run) | {"files": inputs})
    adaptation: dict[str, Any] = {}
    loading = start
    if config.adapt_epochs:
        terminal.say("\nAdaptation to the texts")
        adaptation = {"adaptation": fit(dataclasses.replace(config.adaptation, resume=True), terminal, programs=programs)}
        terminal.say("\nThe run itself, from the adapted model")
        loading = time.perf_counter()
        run = prepare(config.after_adaptation, lambda line: None, run.data.buckets, shared)
    with _signals() as stopped:
        session = Session(run, terminal, time.perf_counter() - loading, stopped, programs)
        if config.tracker and processes.is_first():
            session.log.trackers = Trackers(config, read_json(config.output / "config.json"), terminal.say)
        return session.run_all(adaptation, score_test=score_test)


def score_test_rows(config: TrainConfig, terminal: Terminal, programs: Programs) -> dict[str, Any]:
    """Score the test rows with a finished run's best model, add that to its result.json and report, and return the result.

    For runs whose `fit` left it out; nothing is scored twice.
    """
    result = read_json(config.output / "result.json")
    processes.first_says(lambda: digested(config, resuming=True))
    run = prepare(config.after_adaptation, lambda line: None, rundir.bucket_lengths(config.output))
    if run.data.test is None or "test" in result:
        return result
    owned = rundir.owned(config.output) if processes.is_first() else nullcontext()
    with rundir.disk_errors(config.output), owned, _signals() as stopped:
        session = Session(run, terminal, 0.0, stopped, programs)
        try:
            session.compile_stage(training=False)
            if session.restore_best() != result["best_step"]:
                raise InputError(f"{config.output}: its best checkpoint is lost; evaluate {config.output / 'model'} instead.")
            result["test"] = session.test_scores()
            session.write_result(result)
        finally:
            session.close()
    return result


def digested(config: TrainConfig, *, resuming: bool) -> dict[str, digest.Digests]:
    """The digests of what a run reads; InputError where a run that is resumed began with something else."""
    found = digest.of_inputs(config)
    if resuming:
        digest.check_inputs(read_json(config.output / "config.json").get("files"), found, config)
    return found


def describe(config: TrainConfig, run: Run) -> dict[str, Any]:
    """config.json: every setting, the class names, versions, device and the command that was run."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
    return {
        **config.to_dict(),
        "labels": list(run.data.labels),
        "bucket_lengths": list(run.data.buckets),
        "device": machine.device_description(),
        "versions": {"ftjax": ftjax.__version__, "python": platform.python_version()} | {p: version(p) for p in packages},
        "command": shlex.join(["ftjax", *sys.argv[1:]]),
    } | ({"tracker_run": uuid.uuid4().hex[:12]} if config.tracker else {})


class Session:
    """One process's part of a run."""

    def __init__(self, run: Run, terminal: Terminal, load_seconds: float, stopped: list[int], programs: Programs) -> None:
        self.run, self.config, self.terminal, self.stopped, self.programs = run, run.config, terminal, stopped, programs
        self.metric, self.higher_is_better = run.metric, run.higher_is_better
        self.mesh = run.layout.mesh
        with self.disk():
            set_damaged_aside(self.config.output / "checkpoints", terminal.say)
            self.checkpoints = Checkpoints(self.config.output / "checkpoints", higher_is_better=self.higher_is_better)
            step = self.checkpoints.latest_step()
        self.progress = Progress()
        self.step = 0
        self.prefix: FrozenPrefix | None = None
        if step is not None:
            self.step, self.stage = step, run.stage_of(step)
            fresh = run.state_of(self.stage)
            with self.disk():
                self.state, progress = self.checkpoints.restore(step, fresh)
            self.progress = Progress(**progress)
            if step < run.steps:
                terminal.say(f"Resuming after step {step} of {run.steps}.")
        else:
            self.stage, self.state = 0, run.state_of(0)
        self.train_rows = batch_rows(run.data.train, self.config.batch_size)
        with self.disk():
            self.log = rundir.MetricsLog(self.config.output, self.step, writes=processes.is_first())
        self.progress.seconds["load"] += load_seconds
        self.step_seconds: list[float] = []
        self.running: deque[tuple[int, int, Metrics]] = deque()  # steps under way: number, rows, metrics
        self.loss: float | None = None  # of the last step that is through and was not skipped
        self.value: float | None = None  # of the last evaluation
        self.tokens: list[int] = []

    def disk(self) -> AbstractContextManager[None]:
        """Around what reads or writes in --output: ends the process if the file system does not answer."""
        return within(self.config.write_timeout, f"--output {self.config.output}")

    def run_all(self, before: dict[str, Any], *, score_test: bool) -> dict[str, Any]:
        """Train, score the best model, export it, and write result.json, into which goes too what was done before."""
        per_epoch = self.run.data.steps_per_epoch(self.config.batch_size)
        try:
            self.compile_stage()
            self.train_step.meanwhile = self.look_ahead
            for epoch in range(self.step // per_epoch, self.config.epochs):
                if self.config.early_stopping and self.progress.worse >= self.config.early_stopping:
                    self.terminal.say(f"No better {self.metric} for {self.progress.worse} evaluations: stopping early.")
                    break
                self.enter_stage()
                self.train_epoch(epoch, per_epoch)
            return self.finish(before, score_test=score_test)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the terminal and of all files."""
        self.terminal.stop()
        if self.prefix is not None:
            self.prefix.clean()
        with self.disk():
            self.checkpoints.close()
            self.log.close()

    def enter_stage(self) -> None:
        """Unfreeze what trains from this step on, if that is more than before."""
        number = max(i for i, stage in enumerate(self.run.stages) if stage.from_step <= self.step)
        if number != self.stage:
            self.state, self.stage = self.run.state_of(number, self.state), number
            self.terminal.say(
                f"From here on trains {self.run.stages[number].spec}: {count(self.state.trainable):,} parameters."
            )
            self.compile_stage()

    def compile_stage(self, *, training: bool = True) -> None:
        """The programs of the stage (compiled when they are first run), and what its frozen first layers make of all rows.

        Structure and shapes of the state decide its programs: neither seed nor learning rate is written into them.
        """
        stage, data, config = self.run.stages[self.stage], self.run.data, self.config
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self.state))
        layout = self.run.layout, config.parallel, config.precision
        deciding = jax.tree.structure(self.state), shapes, stage.model, data.task, layout
        if deciding not in self.programs:
            self.programs[deciding] = StagePrograms(
                train=self.run.train_program(),
                eval=Compiled(eval_step, self.mesh, donate=False),
                predict=Compiled(data.task.outputs(stage.model), self.mesh, donate=False, gather=True),
                prefix=Compiled(prefix_step(stage.model), self.mesh, donate=False),
            )
        programs = self.programs[deciding]
        self.train_step, self.eval_step, self.predict = programs.train, programs.eval, programs.predict
        if self.prefix is not None:
            self.prefix.clean()
        self.prefix = None
        self.attach_train: Attach = unchanged
        self.attach_eval: Attach = unchanged
        self.attach: Attach = unchanged
        if not stage.prefix:
            return
        if jax.process_count() > 1:
            self.terminal.say("The output of frozen layers is computed in every step: several processes keep none.")
            return
        per_epoch = data.steps_per_epoch(config.batch_size)
        ends = min([s.from_step for s in self.run.stages[self.stage + 1 :]], default=self.run.steps)
        self.prefix = FrozenPrefix(
            stage.model,
            self.state.frozen,
            programs.prefix,
            buckets=data.buckets,
            batch_size=config.batch_size,
            pad_token_id=data.pad_token_id,
            limits=prefix_limits(config),
            uses=-(-(ends - self.step) // per_epoch),
        )
        self.attach_train = self.attach_eval = self.attach = self.prefix.computed()
        rows = [data.train] if data.eval is None else [data.train, data.eval]
        if not training or self.step >= ends:  # nothing is left to train, only to score
            return
        place, line = self.prefix.place(rows)
        self.terminal.say(line)
        if place != "off":
            clock, seconds, program = Clock(), self.progress.seconds, self.prefix.program
            attach = []
            for examples, phase in zip(rows, ("prefix", "eval"), strict=False):
                compiling = program.seconds
                attach.append(self.prefix.cached(examples, place, self.prefix_progress))
                compiling = program.seconds - compiling
                seconds["compile"] += compiling
                seconds[phase] += clock.lap() - compiling
            self.attach_train, self.attach_eval = attach[0], attach[-1]
            self.terminal.stop()

    def look_ahead(self) -> None:
        """Let a thread import what takes seconds when a checkpoint, the scores and the report are first made."""
        data = self.run.data
        scored = self.run.supervised and not (data.eval is None and data.test is None)
        packages = [*checkpoint.PACKAGES, *(data.task.packages if scored else ())]
        if processes.is_first():
            packages += figures.PACKAGES
        threading.Thread(target=import_packages, args=[packages], name="look ahead").start()

    def prefix_progress(self, done: int, total: int) -> None:
        """Show how far the cache is; end the run where a signal asks for it (nothing new needs saving)."""
        if done == 1:
            self.terminal.start("frozen layers", total)
        self.terminal.advance()
        if self.stopped:
            raise Stopped(self.stopped[0], self.step, resume=self.config.resume)

    def train_epoch(self, epoch: int, per_epoch: int) -> None:
        """The rest of an epoch, its evaluation and its checkpoint."""
        config, seconds, stopped = self.config, self.progress.seconds, self.stopped
        name = f"epoch {epoch + 1}/{config.epochs}"
        self.terminal.start(name, per_epoch, self.step - epoch * per_epoch)
        clock = Clock()
        with closing(prefetch(self.batches(epoch, start=self.step - epoch * per_epoch))) as source:
            for batch in source:
                seconds["data_wait"] += clock.lap()
                compiling = self.compile_seconds
                if not self.train_step.is_ready(batch):
                    compiled = self.train_step.programs  # of other lengths
                    self.terminal.doing("compiling the step for another length of rows" if compiled else "compiling")
                state, metrics = self.train_step(dataclasses.replace(self.state, frozen={}), self.state.frozen, batch)
                self.state = dataclasses.replace(state, frozen=self.state.frozen)
                self.step += 1
                self.running.append((self.step, self.rows_in(batch), metrics))
                compiling = self.compile_seconds - compiling
                seconds["compile"] += compiling
                at_end = self.step == (epoch + 1) * per_epoch
                stopping = self.stopping()
                saving = stopping or (config.save_every and self.step % config.save_every == 0)
                waited = max(0, len(self.running) - (0 if at_end or saving else 1))  # one runs while the next is made ready
                for _ in range(waited):
                    self.settle(per_epoch)
                took = clock.lap() - compiling
                seconds["step"] += took
                if waited and not compiling:  # a step goes on while the next one is compiled: of that time nothing is known
                    self.step_seconds.append(took / waited)
                    self.tokens.append(self.tokens_in(batch))
                self.terminal.advance(self.status)
                if saving and not at_end:
                    self.save()
                    seconds["save"] += clock.lap()
                if stopping and not at_end:
                    self.wait()
                    raise Stopped(self.signal, self.step, resume=config.resume)
        self.terminal.stop()
        self.flush(self.step, epoch=self.step / per_epoch)
        compiling = self.compile_seconds
        value = self.evaluate(epoch + 1)
        compiling = self.compile_seconds - compiling
        seconds["compile"] += compiling
        seconds["eval"] += clock.lap() - compiling
        self.save(value)
        seconds["save"] += clock.lap()
        if processes.agree(bool(stopped)) and epoch + 1 < config.epochs:
            self.wait()
            raise Stopped(self.signal, self.step, resume=config.resume)

    def rows_in(self, batch: dict[str, Any]) -> int:
        """How many examples train in a step; of several processes, as if the others' rows were as full as this one's."""
        rows = batch["example_ids"]
        return int((rows >= 0).sum()) * self.train_rows // len(rows)

    def tokens_in(self, batch: dict[str, Any]) -> int:
        """How many tokens train in a step, padding left out."""
        if "segment_ids" in batch:
            return int((batch["segment_ids"] > 0).sum())
        rows = batch["example_ids"]
        return int(self.run.data.train.lengths[rows[rows >= 0]].sum())

    def stopping(self) -> bool:
        """Whether a signal asks for the end; several processes agree on that when a line is due in metrics.jsonl."""
        asked = bool(self.stopped)  # once: a signal may come at any moment
        return processes.agree(asked) if jax.process_count() == 1 or self.step % self.config.log_every == 0 else False

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """The training batches of an epoch from number `start` on, as the step takes them."""
        data, config = self.run.data, self.config
        source = data.task.batches(
            data.train,
            data.buckets,
            self.train_rows,
            pad_token_id=data.pad_token_id,
            seed=config.seed,
            epoch=epoch,
            start=start,
            labeled_rows=data.labeled_rows,
            part=self.run.layout.own_rows(self.train_rows),
        )
        return map(self.attach_train, source)

    def settle(self, per_epoch: int) -> None:
        """Wait for the oldest step under way and take its metrics.

        Stops where loss or gradient is not finite, before anything of this step is saved.
        """
        step, examples, metrics = self.running.popleft()
        values = {name: (float(total), float(weight)) for name, (total, weight) in jax.device_get(metrics).items()}
        loss, gradient_norm = values["loss"][0], values["gradient_norm"][0]
        skipped = values.get("skipped", (0.0, 1.0))[0] > 0
        self.progress.skipped += skipped
        self.progress.in_a_row = self.progress.in_a_row + 1 if skipped else 0
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.give_up(f"Step {step}: the loss is {loss}, its gradient's norm {gradient_norm}")
        if self.progress.in_a_row >= MOST_SKIPPED:
            self.give_up(f"Step {step}: neither loss nor gradient was finite in the last {MOST_SKIPPED} steps")
        self.loss = None if skipped else loss
        self.progress.examples += examples
        self.progress.add(values)
        if step % self.config.log_every == 0:
            self.flush(step, epoch=step / per_epoch)

    def give_up(self, what: str) -> NoReturn:
        """End the run where the loss has run away; raises InputError."""
        self.wait()
        good = self.checkpoints.latest_step()
        kept = f"the checkpoint of step {good} is kept" if good is not None else "no checkpoint had been made yet"
        raise InputError(f"{what}; {kept}. Lower --learning-rate, add --warmup-steps or look at the data.")

    def wait(self) -> None:
        """Until every checkpoint that was started is whole."""
        with self.disk():
            self.checkpoints.wait()

    def flush(self, step: int, epoch: float) -> None:
        """Write the averages since the last line, if there are any."""
        if averages := self.progress.take():
            rate = {"examples_per_second": self.examples_per_second} if self.step_seconds else {}
            with self.disk():
                self.log.write("train", step, {"epoch": epoch, **averages, **rate})

    @property
    def signal(self) -> int:
        """The one that asked for the end; of another process, SIGTERM."""
        return self.stopped[0] if self.stopped else signal.SIGTERM.value

    @property
    def compile_seconds(self) -> float:
        """What compiling the programs of this stage has taken so far."""
        programs = [self.train_step, self.eval_step, self.predict, *([self.prefix.program] if self.prefix else [])]
        return sum(program.seconds for program in programs)

    @property
    def examples_per_second(self) -> float:
        """Of the last 20 steps of this process, by their median."""
        return self.config.batch_size / statistics.median(self.step_seconds[-20:] or [math.inf])

    @property
    def tokens_per_second(self) -> float:
        """Of the same steps."""
        tokens = self.tokens[-20:] or [0]
        return statistics.mean(tokens) / statistics.median(self.step_seconds[-20:] or [math.inf])

    def status(self) -> str:
        """How the run stands, for the panel."""
        loss = f"loss {self.loss:.4f}  " if self.loss is not None else ""
        score = f"{self.metric} {self.value:.4f}  " if self.value is not None else ""
        if not self.step_seconds:
            return f"{loss}{score}".rstrip()
        rates = f"{self.examples_per_second:,.1f} examples/s  {self.tokens_per_second:,.0f} tokens/s"
        left = duration((self.run.steps - self.step) * statistics.median(self.step_seconds[-20:]))
        return f"{loss}{score}{rates}  {memory(machine.peak_memory_bytes())}  {left} of training left"

    def evaluate(self, epoch: int) -> float | None:
        """Score the evaluation rows and note whether that is the best so far; None without such rows."""
        if self.run.data.eval is None:
            return None
        scores = self.scores(self.run.data.eval, self.run.data.eval_rows, self.attach_eval)
        with self.disk():
            self.log.write("eval", self.step, {"epoch": float(epoch), **scores})
        self.terminal.say(f"epoch {epoch}, evaluation rows: {told(scores)}")
        self.value = value = scores[self.metric]
        best = self.progress.best_scores.get(self.metric)
        better = best is None or (value > best if self.higher_is_better else value < best)
        if better or value == best:  # of equals the later: it has settled at a lower learning rate
            self.progress.best_step, self.progress.best_scores = self.step, scores
        self.progress.worse = 0 if better else self.progress.worse + 1
        return value

    def scores(
        self, examples: Examples, rows: Rows | None, attach: Attach, predictions: Path | None = None
    ) -> dict[str, float]:
        """Metrics of a data set with the current parameters; the self-supervised loss where training has no labels.

        predictions: where to write a line a row for the report.
        """
        data, size = self.run.data, batch_rows(examples, self.config.batch_size)
        make = functools.partial(data.task.batches, part=self.run.layout.own_rows(size))
        if self.run.supervised and rows is not None:
            outputs = all_outputs(
                self.predict, self.state.params, examples, data.buckets, size, data.pad_token_id, attach, make
            )
            if predictions is not None and processes.is_first():
                rundir.write_lines(predictions, data.task.told(outputs, rows, examples))
            return data.task.scores(outputs, rows, examples)
        sums: dict[str, list[float]] = {}
        for batch in make(examples, data.buckets, size, pad_token_id=data.pad_token_id, seed=None):
            for name, pair in self.eval_step(self.state, batch).items():
                old = sums.setdefault(name, [0.0, 0.0])
                sums[name] = [old[0] + float(pair[0]), old[1] + float(pair[1])]
        averages = {name: total / weight for name, (total, weight) in sums.items() if weight}
        terms = (
            (float(t.coefficient_at(jnp.int32(self.step))), averages.get(f"{t.name}_loss", 0.0)) for t in self.state.objective
        )
        return {"loss": sum(coefficient * value for coefficient, value in terms), **averages}

    def save(self, value: float | None = None) -> None:
        """Start a checkpoint of this step."""
        with self.disk():
            self.checkpoints.save(self.state, dataclasses.asdict(self.progress), value)

    def restore_best(self) -> int:
        """Take the state of the best epoch (of the last one without evaluation) and return its step."""
        best = self.progress.best_step or self.step
        if best == self.step:
            return best
        self.wait()
        if wrong := damage(self.checkpoints.directory / str(best)):
            self.terminal.say(
                f"The best checkpoint, of step {best}, cannot be used ({wrong}); the last step's model takes its place."
            )
            assert self.run.data.eval is not None
            self.progress.best_scores = self.scores(self.run.data.eval, self.run.data.eval_rows, self.attach_eval)
            best = self.step
        if best != self.step:
            if (stage := self.run.stage_of(best)) != self.stage:
                self.stage, self.state = stage, self.run.state_of(stage)
                self.compile_stage(training=False)
            with self.disk():
                self.state, _ = self.checkpoints.restore(best, self.state)
        return best

    def test_scores(self) -> dict[str, float]:
        """Scores of the test rows, whose predictions go to the run's directory."""
        data = self.run.data
        assert data.test is not None
        return self.scores(data.test, data.test_rows, self.attach, predictions=self.config.output / "predictions.jsonl")

    def write_result(self, result: dict[str, Any]) -> None:
        """result.json, and what is made of it: the model's card and the report."""
        from ftjax.report import write_report

        output = self.config.output
        if processes.is_first():
            with self.disk():
                write_card(output / "model", read_json(output / "config.json"), result, name=output.name)
                rundir.write_json(output / "result.json", result)
                write_report([output], output / "report.html")
        processes.wait_for_all(f"end of --output {output}")

    def finish(self, before: dict[str, Any], *, score_test: bool) -> dict[str, Any]:
        """The best epoch's model: its scores, export and result.json."""
        clock, seconds = Clock(), self.progress.seconds
        best = self.restore_best()  # of the last step the checkpoint is still being written while rows are scored
        seconds["save"] += clock.lap()
        train_seconds = sum(seconds[name] for name in ("compile", "prefix", "data_wait", "step"))
        data, output = self.run.data, self.config.output
        result: dict[str, Any] = {
            "method": self.config.method,
            "metric": self.metric,
            "trained_parameters": count(self.state.trainable),
            "frozen_parameters": count(self.state.frozen),
            "steps": self.step,
            "best_step": best,
            **({"skipped_steps": self.progress.skipped} if self.config.nonfinite == "skip" else {}),
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            "train_seconds": train_seconds,
            "examples_per_second": self.progress.examples / train_seconds if train_seconds else None,
        }
        if data.eval is not None:
            result["eval"] = self.progress.best_scores
        if data.test is not None and score_test:
            result["test"] = self.test_scores()
            self.terminal.say(f"Test rows: {told(result['test'])}")
        seconds["eval"] += clock.lap()
        self.wait()
        with self.disk():
            save_model(self.run, self.state, output / "model", self.config.export_format)
        seconds["save"] += clock.lap()
        result |= {"peak_memory_bytes": machine.peak_memory_bytes(), "seconds": seconds, **before}
        self.write_result(result)
        spent = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in seconds.items())
        self.terminal.say(f"Time: {spent}.")
        self.terminal.say(f"Model: {output / 'model'} (loads in transformers). Report: {output / 'report.html'}")
        return json.loads((output / "result.json").read_text(encoding="utf-8"))


def import_packages(names: Sequence[str]) -> None:
    """Import them; what cannot be is left to whoever needs it, and says so."""
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)


def told(scores: Mapping[str, float]) -> str:
    """Scores for the log."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def prefix_limits(config: TrainConfig) -> Limits:
    """Where the output of frozen layers may be kept."""
    return Limits(
        where=config.prefix_cache,
        memory_bytes=int(config.prefix_cache_memory_gb * 1e9),
        disk_bytes=int(config.prefix_cache_disk_gb * 1e9),
        directory=config.prefix_cache_dir or config.output / "prefix-cache",
        keep=config.prefix_cache_dir is not None,
    )


class Clock:
    """Time since the last lap, in seconds."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        return took


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While inside, SIGTERM and Ctrl-C add to the list instead of ending the process; a second one ends it."""
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
