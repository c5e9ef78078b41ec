"""A trained model directory put to use: what it says of rows, and how right that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftjax.data.batches import choose_buckets
from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples, load_tokenizer
from ftjax.errors import InputError
from ftjax.evaluation import all_outputs
from ftjax.generate import Sampling, generate, stop_tokens
from ftjax.objective import Vocabulary
from ftjax.parallel import Compiled, replicate
from ftjax.pretrained import Pretrained, load_pretrained, merge
from ftjax.pretrained.adapter import locate
from ftjax.pretrained.hub import model_directory
from ftjax.pretrained.load import read_config
from ftjax.sharding import data_mesh
from ftjax.tasks import task_class, task_of_model
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
        adapter: str | Path | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        precision: str = "float32",
        settings: Any = None,
    ) -> Predictor:
        """settings: of the command, for the task; its `task` is that of a model whose config.json does not tell.

        Raises InputError for a directory without a trained head, and for an adapter for another model.
        """
        base, adapter = locate(model, adapter)
        directory = model_directory(base)
        config, raw_config, _ = read_config(directory, adapter)
        asked = getattr(settings, "task", None)
        kind = task_class(asked) if asked else task_of_model(raw_config)
        kind().suits(config, str(model))
        heads: dict[str, Any] = {} if kind.head in (None, "classifier") else {"labels": (), kind.head: True}
        pretrained = merge(load_pretrained(base, adapter=adapter, precision=precision, **heads))
        if kind.head == "classifier" and not pretrained.labels:
            raise InputError(f"{model}: has no trained classification head; train one with: ftjax train --model {model} ...")
        if pretrained.new:
            raise InputError(f"{model}: has no trained head for --task {kind.name}; train one: ftjax train --model {model} ...")
        longest = pretrained.model.config.max_length
        max_length = longest if max_length is None else max_length
        if not 8 <= max_length <= longest:
            raise InputError(f"--max-length {max_length}: must be from 8 to {longest}, the model's positions.")
        if batch_size < 1:
            raise InputError(f"--batch-size {batch_size}: must be at least 1.")
        tokenizer = load_tokenizer(directory)
        task = kind.saved(settings, raw_config, pretrained.labels)
        task = task.with_vocabulary(Vocabulary.of(tokenizer, config.vocab_size))
        task = task.with_tokenizer(tokenizer, max_length, causal=config.causal)
        if task.cloze != pretrained.model.cloze:
            raise InputError(
                f"{model}: the words or the template in config.json (ftjax_cloze) are other tokens to its tokenizer."
            )
        return cls(task, pretrained, tokenizer, max_length, batch_size)

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
            make=self.task.batches,
        )
        return outputs, examples

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Metrics over the rows that have a label, and how many those are, as `examples`."""
        labeled = sum(label is not None for label in rows.labels or ())
        if not labeled:
            raise InputError(f"{rows.source}: no row has a label to score.")
        outputs, examples = self.outputs(rows)
        return {**self.task.scores(outputs, rows, examples), "examples": labeled}

    def predict(self, rows: Rows | Sequence[str], *, max_new_tokens: int = 128) -> list[dict[str, Any]]:
        """For every row, or text, in their order {"text", "prediction", ...}, see the task.

        Of a task that writes, the prediction is how the row goes on.
        """
        rows = rows if isinstance(rows, Rows) else self.task.asked(rows)
        if self.task.writes:
            model, params, prompts = self.pretrained.model, self.pretrained.params, self.task.prompts(rows, self.tokenizer)
            sampling = Sampling(max_new_tokens, stop=stop_tokens(self.pretrained, self.tokenizer))
            found = generate(model, params, prompts, sampling, batch_size=self.batch_size)
            texts = (self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found)
            return [{"text": text, "prediction": written} for text, written in zip(rows.texts, texts, strict=True)]
        outputs, examples = self.outputs(rows)
        return self.task.predictions(outputs, rows, examples)
