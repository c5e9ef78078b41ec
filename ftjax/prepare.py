"""Config -> everything a run needs, in the order of the data's way; all that can be wrong is found here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from ftjax.config import CLASS_LOSSES, LABEL_LOSSES, TrainConfig
from ftjax.data.batches import choose_buckets
from ftjax.data.files import Rows
from ftjax.data.packing import Packed, batch_rows, packed, packed_like, rows_for
from ftjax.data.parts import Part
from ftjax.data.tables import listed
from ftjax.data.teacher import read_teacher
from ftjax.data.tokenize import Examples, join, load_tokenizer
from ftjax.errors import InputError
from ftjax.models import OF_TOKENS, Model, Params, build
from ftjax.objective import Vocabulary, objective
from ftjax.optimizer import carry_over, with_learning_rate
from ftjax.parallel import Compiled, check_batch_size, parallel_step, pmap_step
from ftjax.partition import count
from ftjax.pretrained.adapter import check_adapter, locate
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import Pretrained, check_cloze, load_pretrained, read_config, saved_labels
from ftjax.seen import Seen
from ftjax.sharding import DATA, FSDP, Layout, make_mesh, read_mesh
from ftjax.shares import Unshared, in_all, own_part, standing_for, total
from ftjax.shares import encoded as encode_shared
from ftjax.stacked import stack, stack_of
from ftjax.stages import Stage, adapt, memory, new_heads, stages_of
from ftjax.step import TrainState, apart, create_state, train_step
from ftjax.tasks import TASKS, task_class
from ftjax.tasks.task import Head, Task

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Data:
    """The tokenised rows of a run, and what is learnt from them.

    labeled_rows: how many rows of each training batch have a label, or 0: rows come as they are.
    """

    task: Task
    train: Examples
    eval: Examples | None
    test: Examples | None
    eval_rows: Rows | None
    test_rows: Rows | None
    buckets: tuple[int, ...]
    vocabulary: Vocabulary
    labeled_rows: int

    @property
    def pad_token_id(self) -> int:
        """Fills rows up."""
        return self.vocabulary.pad_token_id

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names; () where no row has a label."""
        return self.task.labels

    @property
    def labeled(self) -> bool:
        """Whether any training row has a label."""
        return bool(self.train.labeled.any())

    def steps_per_epoch(self, batch_size: int) -> int:
        """Updates an epoch; the last may have fewer rows."""
        rows = (~self.train.labeled).sum() if self.labeled_rows else self.task.rows_per_epoch(self.train)
        return int(-(-rows // (batch_rows(self.train, batch_size) - self.labeled_rows)))


def read_training_rows(config: TrainConfig, task: Task, part: Part | None) -> list[Rows]:
    """The labelled rows, then the unlabelled ones, without those that training has no use for; of each file a part, or all."""
    must = config.method != "self-supervised"
    train: list[Rows] = []
    if config.train_file:
        train.append(task.read_file(config.train_file, config, require_labels=must, part=part))
    if config.dataset:
        train.append(task.read_dataset(config, config.train_split, require_labels=must, part=part))
    if config.unlabeled_file:
        train.append(task.read_file(config.unlabeled_file, config, labels=False, part=part))
    if config.labels_per_class:
        train = task.keep_labels(train, config.labels_per_class, config.seed)
    names = [name for name, _ in config.losses]
    if not (config.method == "self-supervised" and any(name not in LABEL_LOSSES for name in names)):
        train = [with_labels(rows) for rows in train]
    if not (config.supervised_weight or any(name in (*LABEL_LOSSES, *CLASS_LOSSES) for name in names)):
        train = [dataclasses.replace(rows, labels=None, label_names=None) for rows in train]
    if part is not None and not all(rows.texts for rows in train):
        raise InputError("A part without rows is none.")
    return [rows for rows in train if rows.texts]


def read_held_out(config: TrainConfig, task: Task) -> tuple[Rows | None, Rows | None]:
    """(evaluation rows, test rows), which every process has whole."""
    held_out: list[Rows | None] = []
    for file, name in ((config.eval_file, config.eval_split), (config.test_file, config.test_split)):
        if file:
            held_out.append(task.read_file(file, config))
        elif name and config.dataset:
            held_out.append(task.read_dataset(config, name))
        else:
            held_out.append(None)
    return held_out[0], held_out[1]


def prepare_data(config: TrainConfig, say: Say, buckets: tuple[int, ...] = (), shares: Path | None = None) -> Data:
    """Read and tokenise; InputError for rows that training cannot use. buckets: () where they are still to be chosen.

    shares: where several processes exchange training rows, see `ftjax.shares`.
    """
    if shares is not None and not (config.labels_per_class or config.teacher_scores):  # which are of all rows
        with suppress(Unshared):
            return _prepare_data(config, say, buckets, shares, own_part())
    return _prepare_data(config, say, buckets, shares, None)


def _prepare_data(config: TrainConfig, say: Say, buckets: tuple[int, ...], shares: Path | None, part: Part | None) -> Data:
    """The same from all training rows, or from a part of them in each process."""
    directory = model_directory(config.model)
    adapter = Path(config.adapter) if config.adapter else None
    model_config, raw_config, _ = read_config(directory, adapter)
    if config.max_length > model_config.max_length:
        raise InputError(f"--max-length {config.max_length} is longer than the model's {model_config.max_length} positions.")
    task = task_class(config.task).starting(config, raw_config)
    task.suits(model_config, config.model)
    if config.packing and not task.packs:
        raise InputError(f"--packing: is for --task {', '.join(n for n in TASKS if task_class(n).packs)}; leave it out.")
    if part is None:
        train_rows = read_training_rows(config, task, None)
    else:
        train_rows = in_all(lambda: read_training_rows(config, task, part))
    eval_rows, test_rows = read_held_out(config, task)
    if not train_rows:
        raise InputError("No training row has a label, and nothing else is to be learnt from them.")
    any_labels = any(unlabeled(rows) < total(len(rows.texts), rows) for rows in train_rows)
    teacher = None if config.teacher_scores is None else read_teacher(config.teacher_scores)
    if any_labels:
        task = task.fitted([standing_for(rows, task) for rows in train_rows], saved_labels(raw_config))
    elif teacher is not None:
        task = task.fitted([Rows([], None, [*teacher.classes], teacher.source)], saved_labels(raw_config))
    else:  # what is held out can then only be scored by the self-supervised loss
        eval_rows, test_rows = (rows and dataclasses.replace(rows, labels=None) for rows in (eval_rows, test_rows))
    for rows in (eval_rows, test_rows):
        if rows is not None and (any_labels or teacher is not None) and not has_labels(rows):
            column = task.columns(config)["label_column"]
            raise InputError(f"{rows.source}: no row has a label to score; its label column is {column!r}.")

    makes = "causal-lm" if model_config.causal else "masked-lm"
    adapts = config.adapt_epochs and any(text.startswith(makes) for text in config.adapt_loss)
    if config.classifier == "cloze" and not config.from_scratch and not adapts:
        check_cloze(directory, adapter)
    tokenizer = load_tokenizer(directory)
    vocabulary = Vocabulary.of(tokenizer, model_config.vocab_size)
    task = task.with_vocabulary(vocabulary).with_tokenizer(tokenizer, config.max_length, causal=model_config.causal)

    def encode(rows: Rows) -> Examples:
        return task.encode(rows, tokenizer, config.max_length)

    encoded = [encode_shared(rows, encode, shares and shares / str(i)) for i, rows in enumerate(train_rows)]
    train = encoded[0] if len(encoded) == 1 else join(*encoded)
    if teacher is not None:
        train = dataclasses.replace(train, teacher_scores=teacher.of(train_rows, task.labels))
    held_out = [None if rows is None else encode(rows) for rows in (eval_rows, test_rows)]
    for rows, examples in zip([*train_rows, eval_rows, test_rows], [*encoded, *held_out], strict=True):
        if rows is None or examples is None:
            continue
        notes = [f"{len(examples):,} windows"] if examples.rows is not None else []
        notes += [f"{without:,} without a label"] if (without := unlabeled(rows)) and any_labels else []
        notes += [f"{examples.empty:,} with an empty text"] if examples.empty else []
        notes += [f"{examples.truncated:,} cut to {config.max_length} tokens"] if examples.truncated else []
        say(f"{rows.source}: {total(len(rows.texts), rows):,} rows" + (f" ({', '.join(notes)})" if notes else ""))
    labeled = int(train.labeled.sum())
    about_others = [name for name, weight in config.losses if name in CLASS_LOSSES and not weight.is_zero]
    if about_others and task.row_classes and labeled == len(train):
        raise InputError(
            f"--self-supervised-loss {about_others[0]} learns from rows without a label, and there are none: give "
            "--unlabeled-file, or --labels-per-class to keep a few labels."
        )
    labeled_rows, names = 0, [name for name, _ in config.losses]
    if 0 < labeled < len(train) and (config.supervised_weight or any(name in LABEL_LOSSES for name in names)):
        natural = (len(train) - labeled) / labeled
        ratio = config.unlabeled_ratio or min(natural, 3.0)
        if config.unlabeled_ratio or natural > 3.0:
            labeled_rows = min(max(1, round(config.batch_size / (1.0 + ratio))), config.batch_size - 1)
            say(f"Every batch: {labeled_rows} rows with a label, {config.batch_size - labeled_rows} without.")
    return Data(
        task=task,
        train=train,
        eval=held_out[0],
        test=held_out[1],
        eval_rows=eval_rows,
        test_rows=test_rows,
        buckets=buckets,
        vocabulary=vocabulary,
        labeled_rows=labeled_rows,
    )


def unlabeled(rows: Rows) -> int:
    """How many rows have no label; of a part, of all rows."""
    return total(sum(label is None for label in rows.labels or [None] * len(rows.texts)), rows)


def has_labels(rows: Rows) -> bool:
    """Whether any row has a label."""
    return any(label is not None for label in rows.labels or ())


def with_labels(rows: Rows) -> Rows:
    """Only the rows that have a label."""
    chosen = [i for i, name in enumerate(rows.labels or ()) if name is not None]
    pairs = rows.pairs and [rows.pairs[i] for i in chosen]
    labels = [rows.labels[i] for i in chosen] if rows.labels else None
    return dataclasses.replace(rows, texts=[rows.texts[i] for i in chosen], pairs=pairs, labels=labels)


def buckets_for(config: TrainConfig, data: Data, stage: Stage) -> tuple[int, ...]:
    """The lengths to pad rows to, so that padding and compiling cost least in this run, as it begins.

    Counted in passes of a token through a layer: 3 where it trains, 1 where it is frozen or only scored, and 1 in all
    where the output of frozen layers is kept. A layer compiles in about 0.8 s (measured on 2 cores; on a TPU host it is
    alike); a CPU of few cores makes about 3e11 operations a second, an accelerator 1e14, and a pass takes 2 a parameter.
    """
    if config.packing and isinstance(data.train, Packed):  # all rows have one length
        return (data.train.row_length,)
    sizes = stage.model.config
    frozen = stage.model.prefix_layers if stage.prefix else 0
    trained = sizes.num_hidden_layers - frozen
    once = 1 if config.prefix_cache != "off" and config.epochs > 1 else config.epochs
    uses = [3 * config.epochs * trained + once * frozen, config.epochs * trained + once * frozen, sizes.num_hidden_layers]
    parts = [(e.lengths, use) for e, use in zip((data.train, data.eval, data.test), uses, strict=True) if e is not None]
    if isinstance(data.train, Packed) and len(parts) > 1:  # what is learnt from has one length
        del parts[0]
    speed = 3e11 if jax.default_backend() == "cpu" else 1e14 * jax.device_count()
    layer = 4 * sizes.hidden_size**2 + 2 * sizes.hidden_size * sizes.intermediate_size
    compiling = 0.8 * sizes.num_hidden_layers * speed / (2 * layer)
    return choose_buckets(
        np.concatenate([lengths for lengths, _ in parts]),
        most=config.buckets or 8,
        bucket_cost=0.0 if config.buckets else compiling,
        uses=np.repeat(np.array([use for _, use in parts], float), [len(lengths) for lengths, _ in parts]),
    )


def heads(config: TrainConfig, task: Task) -> set[Head]:
    """The heads of the model that the objective reads."""
    names = [name for name, weight in config.losses if not weight.is_zero]
    found: set[Head] = {head for head in ("masked_lm", "causal_lm") if head.replace("_", "-") in names}
    if config.supervised_weight or any(name in CLASS_LOSSES for name in names):
        found |= set() if task.head is None else {task.head}
    return found


def prepare_model(config: TrainConfig, data: Data, layout: Layout) -> Pretrained:
    """The model with the heads the run needs; where the layout cuts what is frozen, no host reads more than a tensor whole."""
    task, needed = data.task, heads(config, data.task)
    if config.classifier and (task.classifier or task.head != "classifier"):
        raise InputError(f"--classifier {config.classifier}: --task {task.name} has a head of its own; leave the flag out.")
    causal = read_config(model_directory(config.model))[0].causal
    if config.scan_layers and not causal:
        raise InputError(f"--scan-layers: {config.model} is no decoder; only the layers of decoders run as a loop.")
    pretrained = load_pretrained(
        config.model,
        adapter=config.adapter,
        labels=task.labels if "classifier" in needed else (),
        classifier="cloze" if task.cloze else task.classifier or config.classifier,
        cloze=task.cloze,
        masked_lm="masked_lm" in needed,
        causal_lm="causal_lm" in needed,
        scan=config.scan_layers,
        precision=config.precision,
        dropout=config.dropout,
        seed=config.seed,
        put=functools.partial(layout.put, kept=True) if layout.cuts_frozen else None,
        from_scratch=config.from_scratch,
    )
    if config.packing and (kind := pretrained.classifier) not in (packs := pretrained.model.config.packs):
        others = " or ".join(name for name in packs if name not in OF_TOKENS)
        raise InputError(f"--packing: the {kind} of {config.model} reads one text a row; take --classifier {others}.")
    told = task.notes()
    if causal and pretrained.raw_config.get("pad_token_id") is None:  # transformers' classifiers find the last token by it
        told["pad_token_id"] = data.pad_token_id
    return dataclasses.replace(pretrained, problem_type=task.problem_type, raw_config={**pretrained.raw_config, **told})


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start: nothing has been compiled or written yet.

    seen: the words that data and model are left with, see `only_seen`; None: all of the model's.
    """

    config: TrainConfig
    data: Data
    pretrained: Pretrained
    stages: tuple[Stage, ...]
    steps: int
    layout: Layout
    seen: Seen | None = None

    def stage_of(self, step: int) -> int:
        """Number of the stage whose state a checkpoint of this step holds; at a boundary, of the one that ends there."""
        return max(i for i, stage in enumerate(self.stages) if i == 0 or stage.from_step < step)

    def new_state(self, number: int, params: Params) -> TrainState:
        """The state of a stage before its first step, from the values of all parameters, stacked or not. Traceable."""
        stage = self.stages[number]
        state = create_state(
            stack(params, stage.model.stacks),
            stage.labels,
            stage.objective,
            stage.optimizer,
            seed=self.config.seed,
            microbatches=self.config.gradient_accumulation,
            unrolled=self.config.unroll_accumulation,
            precision=self.config.precision,
            teacher_decay=self.config.teacher_decay,
            skip_nonfinite=self.config.nonfinite == "skip",
        )
        optimizer_state = with_learning_rate(state.optimizer_state, self.config.learning_rate)
        return dataclasses.replace(state, optimizer_state=optimizer_state)

    def state_of(self, number: int, before: TrainState | None = None) -> TrainState:
        """The state at the beginning of a stage; what trained before it goes on from the state `before`."""
        learnt = {} if before is None else before.trainable
        stacks = self.stages[number].model.stacks
        given = {name: value for name, value in self.pretrained.params.items() if stack_of(name, stacks) not in learnt}
        params = {name: self.layout.put(name, value) for name, value in given.items()} | learnt
        make = functools.partial(self.new_state, number)
        state = jax.jit(make, out_shardings=self.layout.shardings(jax.eval_shape(make, params)))(params)
        if before is not None:
            optimizer_state = carry_over(before.optimizer_state, state.optimizer_state)
            state = dataclasses.replace(
                state,
                step=before.step,
                key=before.key,
                optimizer_state=optimizer_state,
                teacher=state.teacher | before.teacher,
            )
        return state

    @property
    def supervised(self) -> bool:
        """Whether labels, or a teacher's, are learnt by the head that predicts them, so that the task's metrics can be had."""
        head, needed = self.data.task.head, heads(self.config, self.data.task)
        known = self.data.labeled or self.data.train.teacher_scores is not None
        return known and (bool(self.config.supervised_weight) if head is None else head in needed)

    @property
    def metric(self) -> str:
        """What chooses the best epoch: --metric, or the task's own, or the loss where nothing is labelled."""
        return self.config.metric or (next(iter(self.data.task.metrics)) if self.supervised else "loss")

    @property
    def higher_is_better(self) -> bool:
        """Which way the metric is better."""
        return self.data.task.metrics[self.metric].higher_is_better

    def train_program(self) -> Compiled:
        """The training step of every stage, (state without frozen parameters, those, batch) -> (state, metrics)."""
        mesh = self.layout.mesh
        if self.config.parallel == "pmap":
            return Compiled(pmap_step(apart(train_step), list(mesh.devices.flat), trees=2), mesh, donate=True, pmapped=True)
        step = apart(parallel_step(self.layout, dtype=self.config.precision, reduce_dtype=self.config.reduce_dtype))
        return Compiled(step, mesh, donate=True)


def layout_of(
    config: TrainConfig, devices: Sequence[jax.Device], model: Callable[[], Model], memory_bytes: int | None
) -> Layout:
    """How --mesh and --sharding lay the run's arrays over the devices. Raises InputError for a mesh or batch that cannot be.

    auto: all devices along data; along fsdp where whole weights and gradients in float32 would take more than half of a
    device's memory (None: not known). model: gives its shapes, where they are needed.
    """
    if config.mesh == "auto":
        tight = memory_bytes is not None and 8 * count(model().shapes) > memory_bytes / 2
        sizes = {FSDP if tight and len(devices) > 1 else DATA: len(devices)}
    else:
        sizes = read_mesh(config.mesh, len(devices), jax.process_count())
    layout = Layout(make_mesh(sizes, devices), zero1=config.sharding == "zero1" and config.parallel == "jit")
    if devices[0].platform == "cpu" and (layout.tensor > 1 or jax.process_count() > 1):
        # With a tensor axis, and in several processes started again after a kill, programs with many collectives were seen to
        # leave devices of a CPU waiting for each other when they came from the cache of compiled programs; why is not known
        jax.config.update("jax_enable_compilation_cache", False)
        reset_cache()  # or JAX goes by what it was when first used
    if config.parallel == "pmap" and (layout.mesh.size > layout.mesh.shape[DATA] or jax.process_count() > 1):
        raise InputError("--parallel pmap: knows the data axis alone, in one process; leave it out, or take --mesh data=N.")
    if config.reduce_dtype != "float32" and layout.mesh.size > 1 and (layout.part is None or layout.tensor > 1):
        raise InputError(
            f"--reduce-dtype {config.reduce_dtype}: is for gradients of which every device gets a part, so not for --sharding "
            "replicated, --parallel pmap or a tensor axis; leave it out, or take --mesh data=N or fsdp=N with --sharding zero1."
        )
    check_batch_size(config.batch_size, config.gradient_accumulation, layout.row_shards)
    return layout


def prepare(config: TrainConfig, say: Say, buckets: tuple[int, ...] = (), shares: Path | None = None) -> Run:
    """Check, read, load and choose what trains. Raises InputError for every user's mistake.

    buckets: the lengths of the run that is resumed, whose order of batches they are part of. shares: see `prepare_data`.
    """
    config.check()
    base, adapter = locate(config.model, config.adapter)
    config = dataclasses.replace(config, model=str(base), adapter=None if adapter is None else str(adapter))
    devices = jax.devices()
    model = lambda: build(read_config(model_directory(config.model))[0])  # noqa: E731
    layout = layout_of(config, devices, model, (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"))
    data = prepare_data(config, say, buckets, shares)
    return assemble(config, data, prepare_model(config, data, layout), layout, say)


def suited(model: Model, config: TrainConfig, layout: Layout) -> Model:
    """The model as it runs best on the layout's devices: what hidden states are kept in, and which attention."""
    device = layout.mesh.devices.flat[0]
    platform = device.platform
    hidden_dtype = config.hidden_dtype
    if hidden_dtype == "auto":
        hidden_dtype = "float32" if platform == "cpu" else config.precision
    return dataclasses.replace(
        model,
        hidden_dtype=hidden_dtype,
        reduce_dtype=config.reduce_dtype,
        # the units of the first TPUs multiply bfloat16, but kernels for them cannot be written so
        attention="fused" if platform == "tpu" and device.device_kind not in ("TPU v2", "TPU v3") else "reference",
        logits_bytes=model.logits_bytes if platform == "cpu" else 2**29,
    )


def pack_rows(config: TrainConfig, examples: Examples, layout: Layout, say: Say) -> Packed:
    """The training examples in shared rows; InputError where devices and microbatches cannot have as many rows each."""
    train = packed(examples, config.batch_size)
    rows, unit = train.batch_rows, layout.row_shards * config.gradient_accumulation
    if rows % unit:
        larger = itertools.count(config.batch_size + unit, unit)  # a batch to score is cut as evenly
        other = next(size for size in larger if rows_for(examples.lengths, size)[0] % unit == 0)
        raise InputError(
            f"--packing: --batch-size {config.batch_size} is {rows} packed rows, that cannot be split over {layout.row_shards} "
            f"devices x {config.gradient_accumulation} microbatches; take {other}."
        )
    full = len(train.tokens) / (train.packed_rows * train.row_length)
    say(
        f"Packed: {len(train) / train.packed_rows:.1f} texts a row of {train.row_length} tokens, {full:.0%} full; "
        f"{rows} rows an update, about {len(train) * rows / train.packed_rows:.0f} texts."
    )
    return train


def only_seen(config: TrainConfig, data: Data, pretrained: Pretrained, say: Say) -> tuple[Data, Pretrained, Seen]:
    """Data and model by the words that the data have, see `ftjax.seen`; InputError where others are asked for, too."""
    task, of_words = data.task, {"masked_lm", "causal_lm"}
    if task.cloze is not None:
        raise InputError("--vocabulary seen: --classifier cloze reads the whole vocabulary; leave one of them out.")
    if task.head is None or task.head in of_words:
        raise InputError(f"--vocabulary seen: --task {task.name} reads the whole vocabulary; leave the flag out.")
    if heads(config, task) & of_words:
        raise InputError("--vocabulary seen: a --self-supervised-loss reads the whole vocabulary; leave one of them out.")
    examples = [e for e in (data.train, data.eval, data.test) if e is not None]
    seen = Seen.of(examples, data.vocabulary, pretrained)
    say(f"The texts have {len(seen.ids):,} of {len(seen.table):,} words; the others' embeddings are left out until the end.")
    held_out = [None if e is None else seen.renumbered(e) for e in (data.eval, data.test)]
    train, vocabulary = seen.renumbered(data.train), seen.vocabulary(data.vocabulary)
    data = dataclasses.replace(data, train=train, eval=held_out[0], test=held_out[1], vocabulary=vocabulary)
    return data, seen.pretrained, seen


def assemble(config: TrainConfig, data: Data, pretrained: Pretrained, layout: Layout, say: Say) -> Run:
    """The run of a model on data: what trains when, towards what. Parameters may be shapes without values."""
    if (heads := pretrained.model.config.num_attention_heads) % layout.tensor:
        raise InputError(f"--mesh {config.mesh}: {heads} attention heads cannot be split evenly over tensor={layout.tensor}.")
    pretrained = adapt(pretrained, [spec for _, spec in config.stages], config, seed=config.seed)
    pretrained = dataclasses.replace(pretrained, model=suited(pretrained.model, config, layout))
    seen = None
    if config.vocabulary == "seen":
        data, pretrained, seen = only_seen(config, data, pretrained, say)
    if config.packing:
        train = pack_rows(config, data.train, layout, say)
        held_out = [None if examples is None else packed_like(examples, train) for examples in (data.eval, data.test)]
        data = dataclasses.replace(data, train=train, eval=held_out[0], test=held_out[1])
    per_epoch = data.steps_per_epoch(config.batch_size)
    terms = functools.partial(
        objective, config, data.task, data.vocabulary, labeled=data.labeled, steps=config.epochs * per_epoch
    )
    stages = stages_of(config, pretrained, terms, per_epoch)
    if config.export_format == "adapter":
        trained = {name for stage in stages for name, treatment in stage.treatments.items() if treatment.trained}
        check_adapter(pretrained.model, trained | {*pretrained.adapted})
    data = data if data.buckets else dataclasses.replace(data, buckets=buckets_for(config, data, stages[0]))
    if config.from_scratch:
        say(f"All parameters are new: {config.model} gives the configuration and the tokenizer alone.")
    elif new := new_heads(pretrained):
        before = saved_labels(pretrained.raw_config)
        if before and data.labels and set(before) != set(data.labels):
            what = f"The checkpoint names the classes {listed(before)}, the rows {listed(data.labels)}"
            say(f"{what}: a new classifier trains.")
        say(f"Not in the checkpoint, initialised and trained: {', '.join(new)}")
    if (lora := pretrained.model.lora) is not None:
        kind = "DoRA" if lora.dora else "LoRA"
        say(f"{kind} of rank {lora.rank}, scale {lora.scale:g}, beside {len(lora.modules)} kernels.")
    if in_4bit := pretrained.model.in_4bit:
        say(f"{len(in_4bit)} frozen kernels are kept in 4 bits.")
    if config.packing and (frozen := stages[0].model.prefix_layers):
        layers = f"The first {frozen} of {pretrained.model.config.num_hidden_layers} layers are frozen, without dropout"
        say(f"{layers}; their output is computed in every step (rows are packed).")
    for stage in stages:
        when = f"From step {stage.from_step} on: t" if stage.from_step else "T"
        say(f"{when}raining {memory(stage.model, stage.labels, stage.optimizer).line(stage.spec)}")
    if layout.mesh.size > 1:
        sizes = ",".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items() if size > 1)
        say(f"Mesh: {sizes}" + (f" (of {len(devices)} devices)." if len(devices := jax.devices()) > layout.mesh.size else "."))
    return Run(config, data, pretrained, stages, config.epochs * per_epoch, layout, seen)
