"""Scoring: logits of every example, once each, and the metrics of a whole data set."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from ftjax.data.batches import batches
from ftjax.data.tokenize import Examples
from ftjax.models import Model, Params
from ftjax.objectives import Batch
from ftjax.objectives.classification import class_logits
from ftjax.parallel import Compiled
from ftjax.prefix import Attach, unchanged


def predict_step(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """A step (params, batch) -> float32 logits (batch, classes), dropout off."""

    def step(params: Params, batch: Batch) -> jax.Array:
        return class_logits(model, params, batch, None)

    return step


def all_logits(
    step: Compiled,
    params: Params,
    examples: Examples,
    buckets: tuple[int, ...],
    batch_size: int,
    pad_token_id: int,
    attach: Attach = unchanged,
) -> np.ndarray:
    """float32 (rows, classes) in the order of the rows; the rows that only fill a batch are dropped.

    attach: puts what frozen layers make of a batch in the place of its tokens.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches(examples, buckets, batch_size, pad_token_id=pad_token_id, seed=None):
        real = batch["example_ids"] >= 0
        found.append((batch["example_ids"][real], np.asarray(step(params, attach(batch)))[real]))
    rows, logits = (np.concatenate(part) for part in zip(*found, strict=True))
    return logits[np.argsort(rows)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """loss (mean cross-entropy, nats), accuracy, macro_f1 and matthews over the rows that have a label.

    logits float (rows, classes), labels int (rows,), negative where a row has none. Every labelled row counts once.
    macro_f1 averages over the classes that occur in labels or predictions.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    logits, labels = logits[labels >= 0], labels[labels >= 0]
    predictions = logits.argmax(-1)
    probability = softmax(logits)[np.arange(len(labels)), labels]
    return {
        "loss": float(-np.log(np.maximum(probability, np.finfo(np.float64).tiny)).mean()),
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predictions)),
    }
