"""A run without weights and without rows: what `ftjax plan` compiles and `ftjax benchmark` times needs only their shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ftjax.config import StepConfig
from ftjax.data.batches import make_batch
from ftjax.data.tokenize import Examples
from ftjax.errors import InputError
from ftjax.models import Params, build, initial_value
from ftjax.models.body import Cloze, Config
from ftjax.models.shapes import SHAPES
from ftjax.objective import Vocabulary
from ftjax.objectives import Batch
from ftjax.prefix import attached
from ftjax.prepare import Data, Run, assemble, heads, layout_of
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import Pretrained, read_config, refuse_seq2seq, saved_labels, unnamed
from ftjax.sharding import ROWS
from ftjax.step import TrainState
from ftjax.tasks import task_class

SPECIAL_IDS, MASK_TOKEN_ID = (0, 101, 102, 103), 103  # of the English BERT vocabulary; the step costs the same with others


def bare_run(
    config: StepConfig, train: Examples, devices: Sequence[jax.Device], memory_bytes: int | None, say: Callable[[str], None]
) -> Run:
    """The run of a config whose parameters are shapes, on rows made up by `full_rows` or `random_rows`.

    devices: that it is laid over, with the memory of each, which `--mesh auto` goes by; None: not known.
    Raises InputError for a model or settings as training would.
    """
    source, model_config = shape_of(config)
    if config.max_length > model_config.max_position_embeddings:
        raise InputError(
            f"--max-length {config.max_length} is longer than the model's {model_config.max_position_embeddings} positions."
        )
    task = task_class(config.task).of(config)
    labels = unnamed(task.num_labels or 0) or saved_labels(read_config(source)[1]) or unnamed(config.num_labels)
    if config.dropout is not None:
        model_config = model_config.with_dropout(config.dropout)
    continuations = b"\0\1".ljust(model_config.vocab_size, b"\0")  # some piece goes on with a word
    vocabulary = Vocabulary(0, min(MASK_TOKEN_ID, model_config.vocab_size - 1), SPECIAL_IDS, continuations)
    task = dataclasses.replace(task, labels=labels).with_vocabulary(vocabulary)
    refuse_seq2seq(model_config, config.model)
    if task.head is None:
        raise InputError(f"--task {config.task}: its step has no plan and no benchmark yet.")
    needed = heads(config, task)
    classes = "classifier" in needed
    kind = task.classifier or config.classifier or model_config.own_classifier
    cloze = Cloze(tuple((token,) for token in range(len(labels))), before=1, after=5, gap=-3) if kind == "cloze" else None
    model = build(
        model_config,
        num_labels=len(labels) if classes else None,
        classifier=kind,
        cloze=cloze if classes else None,
        masked_lm="masked_lm" in needed,
        causal_lm="causal_lm" in needed,
        scan=config.scan_layers,
        precision=config.precision,
    )
    data = Data(
        task=task,
        train=task.made_up(train),
        eval=None,
        test=None,
        eval_rows=None,
        test_rows=None,
        buckets=(config.max_length,),
        vocabulary=vocabulary,
        labeled_rows=0,
    )
    pretrained = Pretrained(
        directory=Path(source),
        model=model,
        params=model.shapes,  # type: ignore[arg-type, unused-ignore]  # shapes stand for values
        new=tuple(name for name in model.shapes if name.startswith(("classifier.", "masked_lm.")) and not model.cloze),
        spelled={},
        dtypes={},
        carried=(),
        labels=labels if classes else (),
        classifier=kind,
        raw_config={},
    )
    layout = layout_of(config, devices, lambda: model, memory_bytes)
    return assemble(config, data, pretrained, layout, say)


def shape_of(config: StepConfig) -> tuple[Path | str, Config]:
    """(what `read_config` takes, the architecture's configuration) of --model."""
    try:
        source = config.model if config.model in SHAPES else model_directory(config.model)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}. Shapes without weights are {', '.join(SHAPES)}.") from None
    return source, read_config(source)[0]


def full_rows(number: int, length: int) -> Examples:
    """That many rows, all of the same length; however many there are, they take next to no memory."""
    tokens = np.broadcast_to(np.int32(1), (number * length,))
    labels = np.broadcast_to(np.int32(0), (number,))
    return Examples(tokens, tokens, np.arange(number + 1) * length, labels, truncated=0, empty=0)


def random_rows(
    number: int, length: int, vocab_size: int, classes: int, *, shortest: int | None = None, seed: int = 0
) -> Examples:
    """Rows of random tokens and labels whose lengths spread evenly from `shortest` (default: a quarter) up to `length`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest or max(1, length // 4), length + 1, number)
    starts = np.concatenate([[0], lengths.cumsum()])
    tokens = rng.integers(0, vocab_size, starts[-1]).astype(np.int32)
    labels = rng.integers(0, classes, number).astype(np.int32)
    return Examples(tokens, np.zeros_like(tokens), starts, labels, truncated=0, empty=0)


def initial_params(run: Run) -> Params:
    """New values for every parameter of a bare run."""
    keys = jax.random.split(jax.random.key(0), len(run.pretrained.params))
    wide = run.pretrained.model.config.initializer_range
    shapes = run.pretrained.params
    return {name: initial_value(name, shapes[name].shape, key, wide) for name, key in zip(shapes, keys, strict=True)}


def step_arguments(run: Run) -> tuple[TrainState, Params, Batch]:
    """What `Run.train_program` is compiled for: (state without what is frozen, that, batch), shapes that lie on the mesh."""
    stage, size, length = run.stages[0], run.config.batch_size, run.data.buckets[-1]
    state = jax.eval_shape(lambda params: run.new_state(0, params), run.pretrained.params)
    rows = run.data.task.made_up(full_rows(size, length))
    batch = jax.eval_shape(lambda: make_batch(rows, np.arange(size), length, size, 0))
    if stage.prefix:
        batch = attached(stage.model, batch)
    rows = NamedSharding(run.layout.mesh, PartitionSpec(ROWS))
    placed = jax.tree.map(_on, state, run.layout.shardings(state))
    return (
        dataclasses.replace(placed, frozen={}),
        placed.frozen,
        jax.tree.map(lambda leaf: _on(leaf, rows), batch),
    )


def _on(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
