"""Scoring: what the model says of every example, once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from ftjax.data.batches import batches
from ftjax.data.tokenize import Examples
from ftjax.models import Model, Params
from ftjax.objectives import Batch
from ftjax.objectives.classification import class_logits
from ftjax.parallel import Compiled, shard_batch
from ftjax.prefix import Attach, unchanged
from ftjax.processes import fetch


def predict_step(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """A step (params, batch) -> float32 logits (batch, classes) or (batch, length, classes), dropout off."""

    def step(params: Params, batch: Batch) -> jax.Array:
        return class_logits(model, params, batch, None)

    return step


def all_outputs(
    step: Compiled,
    params: Params,
    examples: Examples,
    buckets: tuple[int, ...],
    batch_size: int,
    pad_token_id: int,
    attach: Attach = unchanged,
    make: Callable[..., Iterator[Batch]] = batches,
) -> list[np.ndarray]:
    """What the step gives for each example, in their order; the rows that only fill a batch are dropped.

    What is said of each token is as long as the example's batch was.

    attach: puts what frozen layers make of a batch in the place of its tokens. make: the task's batches, or of each the rows
    that this process makes; every process gets all that is said.
    """
    found: dict[int, np.ndarray] = {}
    for batch in make(examples, buckets, batch_size, pad_token_id=pad_token_id, seed=None):
        placed = shard_batch(attach(batch), step.mesh)
        found |= dict(by_example(placed, fetch(step(params, placed))))
    return [found[row] for row in range(len(examples))]


def by_example(batch: Batch, outputs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(number, what was said) of each example of a batch; of rows and places that are only filled, number -1."""
    numbers = fetch(batch["example_ids"])
    if numbers.ndim == 1:  # an example a row
        yield from zip(numbers.tolist(), outputs, strict=True)
    elif "reads" in batch:  # one readout for each that a row has room for
        yield from zip(numbers.ravel().tolist(), outputs.reshape(-1, *outputs.shape[2:]), strict=True)
    else:  # one a token
        for row, segments, said in zip(numbers.tolist(), fetch(batch["segment_ids"]), outputs, strict=True):
            yield from ((number, said[segments == place]) for place, number in enumerate(row, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
