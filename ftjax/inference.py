"""A trained model directory put to use: what it says of rows, and how right that is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ftjax.data.batches import choose_buckets
from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples, load_tokenizer
from ftjax.errors import InputError
from ftjax.evaluation import all_outputs
from ftjax.parallel import Compiled, data_mesh, replicate
from ftjax.pretrained import Pretrained, load_pretrained
from ftjax.tasks import task_of_model
from ftjax.tasks.task import Outputs, Task


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model, its task and its tokenizer, loaded from a Hugging Face directory or hub id."""

    task: Task
    pretrained: Pretrained
    tokenizer: Any
    max_length: int
    batch_size: int

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        max_length: int | None = None,
        batch_size: int = 32,
        precision: str = "float32",
        settings: Any = None,
    ) -> Predictor:
        """settings: of the command, for the task. Raises InputError for a directory without a trained head."""
        pretrained = load_pretrained(model, precision=precision)
        if not pretrained.labels:
            raise InputError(f"{model}: has no trained classification head; train one with: ftjax train --model {model} ...")
        longest = pretrained.model.config.max_length
        max_length = longest if max_length is None else max_length
        if not 8 <= max_length <= longest:
            raise InputError(f"--max-length {max_length}: must be from 8 to {longest}, the model's positions.")
        if batch_size < 1:
            raise InputError(f"--batch-size {batch_size}: must be at least 1.")
        task = task_of_model(pretrained.raw_config).saved(settings, pretrained.raw_config, pretrained.labels)
        return cls(task, pretrained, load_tokenizer(pretrained.directory), max_length, batch_size)

    def outputs(self, rows: Rows) -> tuple[Outputs, Examples]:
        """What the model says of every example that the rows make, and those."""
        examples = self.task.encode(rows, self.tokenizer, self.max_length)
        mesh = data_mesh()
        outputs = all_outputs(
            Compiled(self.task.outputs(self.pretrained.model), mesh, donate=False),
            replicate(self.pretrained.params, mesh),
            examples,
            choose_buckets(examples.lengths),
            -(-self.batch_size // mesh.size) * mesh.size,
            self.tokenizer.pad_token_id or 0,
        )
        return outputs, examples

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Metrics over the rows that have a label, and how many those are, as `examples`."""
        labeled = sum(label is not None for label in rows.labels or ())
        if not labeled:
            raise InputError(f"{rows.source}: no row has a label to score.")
        outputs, examples = self.outputs(rows)
        return {**self.task.scores(outputs, rows, examples), "examples": labeled}

    def predict(self, rows: Rows) -> list[dict[str, Any]]:
        """For every row {"text", "prediction", ...}, see the task."""
        outputs, examples = self.outputs(rows)
        return self.task.predictions(outputs, rows, examples)
