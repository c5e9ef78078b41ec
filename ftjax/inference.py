"""A trained model directory put to use: logits and scores for rows of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.data.batches import choose_buckets
from ftjax.data.files import Rows
from ftjax.data.tokenize import encode, load_tokenizer
from ftjax.errors import InputError
from ftjax.evaluation import all_logits, classification_metrics, predict_step, softmax
from ftjax.parallel import Compiled, replicate
from ftjax.pretrained import Pretrained, load_pretrained
from ftjax.sharding import data_mesh


@dataclasses.dataclass(frozen=True)
class TextClassifier:
    """A classifier and its tokenizer, loaded from a Hugging Face directory or hub id."""

    pretrained: Pretrained
    tokenizer: Any
    max_length: int
    batch_size: int

    @classmethod
    def load(
        cls, model: str | Path, *, max_length: int | None = None, batch_size: int = 32, precision: str = "float32"
    ) -> TextClassifier:
        """Raises InputError for a directory without a trained classification head."""
        pretrained = load_pretrained(model, precision=precision)
        if not pretrained.labels:
            raise InputError(f"{model}: has no trained classification head; train one with: ftjax train --model {model} ...")
        longest = pretrained.model.config.max_length
        max_length = longest if max_length is None else max_length
        if not 8 <= max_length <= longest:
            raise InputError(f"--max-length {max_length}: must be from 8 to {longest}, the model's positions.")
        if batch_size < 1:
            raise InputError(f"--batch-size {batch_size}: must be at least 1.")
        return cls(pretrained, load_tokenizer(pretrained.directory), max_length, batch_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the scores."""
        return self.pretrained.labels

    def logits(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """(float32 logits (rows, classes), int32 labels (rows,), -100 where a row has none), in the order of the rows."""
        examples = encode(rows, self.tokenizer, self.labels, self.max_length)
        mesh = data_mesh()
        devices = mesh.size
        return (
            all_logits(
                Compiled(predict_step(self.pretrained.model), mesh, donate=False),
                replicate(self.pretrained.params, mesh),
                examples,
                choose_buckets(examples.lengths),
                -(-self.batch_size // devices) * devices,
                self.tokenizer.pad_token_id or 0,
            ),
            examples.labels,
        )

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Metrics over the rows that have a label, and how many those are, as `examples`."""
        logits, labels = self.logits(rows)
        if not (labels >= 0).any():
            raise InputError(f"{rows.source}: no row has a label to score.")
        return {**classification_metrics(logits, labels), "examples": int((labels >= 0).sum())}

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """For every text its prediction and the probability of every class."""
        rows = Rows(list(texts), None if pairs is None else list(pairs), None, "the texts given")
        return [
            {
                "text": text,
                "prediction": self.labels[int(scores.argmax())],
                "scores": dict(zip(self.labels, map(float, scores), strict=True)),
            }
            for text, scores in zip(rows.texts, softmax(self.logits(rows)[0]), strict=True)
        ]
