"""Only the trained part is paid for: read off the compiled step, on BERT-base shapes over 8 devices."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from conftest import random_batch
from jax.sharding import NamedSharding, PartitionSpec

from ftjax.models import Lora, build, with_lora
from ftjax.models.bert import BertConfig
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.optimizer import adamw
from ftjax.parallel import parallel_step
from ftjax.partition import count, label, split
from ftjax.sharding import DATA, Layout, data_mesh
from ftjax.step import apart, create_state

SPECS = ("all", "last:2,head", "head", "bias,head", "lora:8,head")
ROWS, LENGTH = 16, 32


@functools.cache
def compiled(spec, precision="float32", microbatches=2, prefix=False):
    """(program, trainable shapes, frozen shapes) of the real step: clipping, norm metric and accumulation on."""
    model = build(BertConfig(), num_labels=2, precision=precision)
    if spec.startswith("lora"):
        modules = [f"encoder.layers.{i}.attention.{name}" for i in range(12) for name in ("query", "value")]
        model = with_lora(model, Lora(8, 16.0, tuple(modules)))
    labels = label(model.shapes, spec, layers=12)
    trainable, frozen = split(model.shapes, labels)
    model = model.freeze(trainable)
    terms = (Term("classification", 1.0, Classification(model)),)
    make = functools.partial(
        create_state,
        labels=labels,
        objective=terms,
        optimizer=adamw(trainable, 1e-4),
        microbatches=microbatches,
        precision=precision,
    )
    mesh = data_mesh()
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    shaped = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)  # noqa: E731
    state = jax.eval_shape(make, model.shapes)
    batch = random_batch(rows=ROWS, length=LENGTH)
    if prefix:
        batch = {name: batch[name] for name in ("attention_mask", "labels", "example_ids")}
        batch["prefix"] = np.zeros((ROWS, LENGTH, 768), np.float32)
    program = (
        jax.jit(apart(parallel_step(Layout(mesh, zero1=False))), donate_argnums=0)
        .lower(shaped(dataclasses.replace(state, frozen={}), whole), shaped(state.frozen, whole), shaped(batch, rows))
        .compile()
    )
    return program, trainable, frozen


def flops(program):
    return program.cost_analysis()["flops"]


def reduced(text):
    """How many numbers the all-reduces of a program's text add up over the devices."""
    shapes = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    dimensions = [d for shape in shapes for d in re.findall(r"\w+\[([\d,]*)\]", shape)]
    return sum(int(np.prod([int(n) for n in d.split(",") if n])) for d in dimensions)


@pytest.mark.parametrize("spec", SPECS)
def test_only_gradients_of_what_trains_are_reduced_and_once(spec):
    program, trainable, _ = compiled(spec)
    scalars = 64  # sums and weights of metrics
    unused = (512 - LENGTH) * 768 if spec == "all" else 0  # rows of the position table that no token has
    everywhere, entry = (reduced(text) for text in (program.as_text(), program.as_text().partition("\nENTRY ")[2]))
    assert everywhere == entry  # none inside the loop over microbatches
    assert count(trainable) - unused <= everywhere <= count(trainable) + scalars


def test_flops_follow_what_trains():
    """Forward F = 12 layers; backward costs another F for input gradients and F for weight gradients where they are."""
    full, last, head, bias, lora = (flops(compiled(spec)[0]) for spec in SPECS)
    assert last / full < 0.5  # 12 forward + 2 x 2 backward, of 36: 0.44
    assert head / full < 0.37  # 12 of 36: 0.33
    assert bias / full < 0.75  # no weight gradients: 24 of 36
    assert lora / full < 0.78


@pytest.mark.parametrize("spec", SPECS)
def test_arguments_hold_moments_of_what_trains_alone(spec):
    program, trainable, frozen = compiled(spec)
    memory = program.memory_analysis()
    batch = 3 * 4 * ROWS * LENGTH
    expected = 4 * (3 * count(trainable) + count(frozen))
    assert abs(memory.argument_size_in_bytes - expected) < batch + 4096


def test_temporaries_shrink_with_what_trains():
    full, last, head, bias, lora = (compiled(spec)[0].memory_analysis().temp_size_in_bytes for spec in SPECS)
    assert last < 0.45 * full
    assert head < 0.35 * full
    assert bias < full
    assert lora < full


def test_frozen_matrices_are_kept_in_the_compute_dtype():
    program, trainable, frozen = compiled("last:2,head", precision="bfloat16")
    matrices, vectors = (sum(v.size for v in frozen.values() if (len(v.shape) > 1) == big) for big in (True, False))
    expected = 4 * 3 * count(trainable) + 2 * matrices + 4 * vectors
    assert abs(program.memory_analysis().argument_size_in_bytes - expected) < 3 * 4 * ROWS * LENGTH + 4096


def test_with_a_prefix_the_frozen_layers_are_not_in_the_program():
    with_prefix, trainable, _ = compiled("last:2,head", microbatches=1, prefix=True)
    whole, *_ = compiled("last:2,head", microbatches=1)
    arguments = with_prefix.memory_analysis().argument_size_in_bytes
    assert abs(arguments - 12 * count(trainable)) < 4 * 768 * ROWS * LENGTH + 4096
    assert flops(with_prefix) < 0.45 * flops(whole)
