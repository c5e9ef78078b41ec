"""Texts are to be continued: every token is predicted from those before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from ftjax.data.files import Reader, Rows
from ftjax.data.packing import Packed, documents
from ftjax.data.parts import Part
from ftjax.data.tables import Table, load_table, whole_only
from ftjax.data.tokenize import CHUNK, Examples
from ftjax.models import Model, Params
from ftjax.objectives import Batch, Loss
from ftjax.objectives.causal_lm import CausalLM, labeled_tokens, token_scores
from ftjax.tasks.task import LOSS, Head, Metric, Outputs
from ftjax.tasks.texts import TextTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def corpus_table(path: Path, part: Part | None = None) -> Table:
    """A file's rows, a document each; a file of plain text is one document, its line breaks and all."""
    table = load_table(path, part)
    if not table.plain:
        return table
    whole_only(path, part)
    whole = "\n".join(table.cells("text"))
    return dataclasses.replace(table, cells=lambda name: [whole], rows=1)


def framed(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, end: bool = True) -> list[list[int]]:
    """Tokens of texts: the one that begins a text (or else the one that ends texts), its own, and the one that ends it."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before, after = ([] if token is None else [token] for token in (first, tokenizer.eos_token_id if end else None))
    found: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        encoded: Any = tokenizer(list(texts[start : start + CHUNK]), add_special_tokens=False, verbose=False)
        found += [before + ids + after for ids in encoded["input_ids"]]
    return [row or [tokenizer.pad_token_id or 0] for row in found]


def totals(outputs: Outputs, examples: Examples) -> np.ndarray:
    """float64 (documents, 3): the nats of each one's learnt tokens, how many of those were the likeliest, how many they are.

    outputs: see `ftjax.objectives.causal_lm.token_scores`.
    """
    assert examples.rows is not None
    learnt = np.add.reduceat((examples.labels >= 0).astype(np.int64), examples.starts[:-1])
    pieces = np.array([[*each.sum(0, dtype=np.float64), number] for each, number in zip(outputs, learnt, strict=True)])
    found = np.zeros((examples.rows.max() + 1, 3))
    np.add.at(found, examples.rows, pieces)
    return found


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf


class LanguageModel(TextTask):
    """What causal-lm and dialogue share: packed rows to learn from, and a trained model goes on writing where a row ends."""

    metrics: ClassVar[dict[str, Metric]] = {
        "loss": LOSS,
        "perplexity": Metric("perplexity", higher_is_better=False),
        "accuracy": Metric("token accuracy"),
    }
    head: ClassVar[Head] = "causal_lm"
    writes: ClassVar[bool] = True

    def made_up(self, examples: Examples) -> Examples:
        values = {field.name: getattr(examples, field.name) for field in dataclasses.fields(examples)}
        values |= {"labels": examples.tokens, "per_token": True}
        return Packed(**values, row_length=int(examples.lengths.max()))

    def loss(self, model: Model) -> Loss:
        return CausalLM(model, labeled=True)

    def outputs(self, model: Model) -> Callable[[Params, Batch], jax.Array]:
        return lambda params, batch: token_scores(model, params, labeled_tokens(batch))

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        nats, right, tokens = totals(outputs, examples).sum(0).tolist()
        loss = nats / max(tokens, 1)
        return {"loss": loss, "perplexity": perplexity(loss), "accuracy": right / max(tokens, 1)}

    def told(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        found = zip(rows.texts, totals(outputs, examples).tolist(), strict=False)
        return [{"text": text, "loss": nats / max(tokens, 1), "tokens": int(tokens)} for text, (nats, _, tokens) in found]


@dataclasses.dataclass(frozen=True)
class CausalLanguageModel(LanguageModel):
    """A row is a document."""

    name: ClassVar[str] = "causal-lm"
    metrics: ClassVar[dict[str, Metric]] = {
        **LanguageModel.metrics,
        "bits_per_character": Metric("bits per character", higher_is_better=False),
        "bits_per_byte": Metric("bits per byte", higher_is_better=False),
    }
    reader: ClassVar[Reader] = Reader(table=corpus_table)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in raw_config.get("architectures") or ())

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        empty = sum(not text.strip() for text in rows.texts)
        return documents(framed(rows.texts, tokenizer), None, max_length, truncated=0, empty=empty)

    def prompts(self, rows: Rows, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        return framed(rows.texts, tokenizer, end=False)

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        bits = float(totals(outputs, examples)[:, 0].sum()) / math.log(2)
        characters, size = (sum(map(len, part)) for part in (rows.texts, [text.encode() for text in rows.texts]))
        per = {"bits_per_character": bits / max(characters, 1), "bits_per_byte": bits / max(size, 1)}
        return super().scores(outputs, rows, examples) | per


TASK = CausalLanguageModel
