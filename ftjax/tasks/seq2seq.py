"""A text is turned into another, by an encoder and a decoder: translation, summarisation."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.files import Reader, Rows, text
from ftjax.data.pairs import pair_batches
from ftjax.data.tokenize import CHUNK, Examples
from ftjax.data.tokenize import encode as encode_sources
from ftjax.errors import InputError
from ftjax.generate import FINISHED, likeliest
from ftjax.models import Model, Params
from ftjax.models.body import Config
from ftjax.models.t5 import T5Config
from ftjax.objectives import NO_LABEL, Batch, Loss
from ftjax.objectives.classification import cross_entropy
from ftjax.objectives.seq2seq import Seq2Seq, seq2seq_logits
from ftjax.tasks.task import LOSS, Head, Metric, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ftjax.objective import Vocabulary

ROUGE = ("rouge1", "rouge2", "rougeL")


def target(value: Any, classes: tuple[str, ...] | None, source: str, row: int) -> str | None:
    """A cell as a target; None where it is null or empty."""
    return text(value, source, row) or None


def text_scores(written: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """bleu and chrf of the whole (sacrebleu: Post, 2018, https://arxiv.org/abs/1804.08771), mean rouge1, rouge2 and rougeL (F,
    with stemming, as rouge-score has them): all from 0 to 100.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(list(ROUGE), use_stemmer=True)
    each = [rouge.score(wanted, found) for wanted, found in zip(targets, written, strict=True)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), [list(targets)]).score,
        "chrf": sacrebleu.corpus_chrf(list(written), [list(targets)]).score,
        **{name: 100 * float(np.mean([scores[name].fmeasure for scores in each])) for name in ROUGE},
    }


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Task):
    """The label of a row is the text to write.

    most: the longest target in tokens; longer ones are cut. decode: tokens to text, once the tokenizer is known.
    """

    name: ClassVar[str] = "seq2seq"
    metrics: ClassVar[dict[str, Metric]] = {
        "chrf": Metric("chrF"),
        "bleu": Metric("BLEU"),
        "rouge1": Metric("ROUGE-1"),
        "rouge2": Metric("ROUGE-2"),
        "rougeL": Metric("ROUGE-L"),
        "accuracy": Metric("token accuracy"),
        "loss": LOSS,
    }
    reader: ClassVar[Reader] = Reader(text_column="source", label_column="target", label=target)
    head: ClassVar[Head | None] = None

    most: int = 128
    decode: Callable[[Sequence[int]], str] = str

    @classmethod
    def of(cls, settings: Any) -> Self:
        if missing := [name for name in ("sacrebleu", "rouge_score") if importlib.util.find_spec(name) is None]:
            raise InputError(
                f"--task seq2seq scores texts with {missing[0]}, which is not installed: pip install ftjax[seq2seq]."
            )
        return cls(most=getattr(settings, "max_target_length", None) or cls.most)

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return raw_config.get("model_type") == T5Config.model_type

    @classmethod
    def saved(cls, settings: Any, raw_config: dict[str, Any], labels: tuple[str, ...]) -> Self:
        return dataclasses.replace(cls.of(settings), most=raw_config.get("ftjax_max_target_length", cls.most))

    def notes(self) -> dict[str, Any]:
        return {"ftjax_max_target_length": self.most}

    def suits(self, config: Config, source: str) -> None:
        if not isinstance(config, T5Config):
            raise InputError(f"{source}: {config.model_type} has no encoder and decoder, which --task seq2seq needs; take T5.")

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        return dataclasses.replace(self, decode=vocabulary.decode)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        sources = encode_sources(dataclasses.replace(rows, labels=None), tokenizer, (), max_length)
        given: Sequence[str | None] = rows.labels or [None] * len(rows.texts)
        ids: list[list[int]] = []
        cut = 0
        for start in range(0, len(given), CHUNK):
            texts = [label or "" for label in given[start : start + CHUNK]]
            encoded: Any = tokenizer(text_target=texts, truncation=True, max_length=self.most)
            found = [self.ended(row, tokenizer.eos_token_id) if text else [] for row, text in zip(encoded["input_ids"], texts)]
            ids += found
            cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        labels = np.full((len(ids), max(1, *map(len, ids))), NO_LABEL, np.int32)
        for row, tokens in zip(labels, ids, strict=True):
            row[: len(tokens)] = tokens
        return dataclasses.replace(sources, labels=labels, truncated=sources.truncated + cut)

    def ended(self, tokens: list[int], end: int | None) -> list[int]:
        """A target with the token that ends texts, which some tokenizers do not add."""
        return tokens if end is None or tokens[-1:] == [end] else [*tokens[: self.most - 1], end]

    def loss(self, model: Model) -> Loss:
        return Seq2Seq(model)

    def outputs(self, model: Model) -> Callable[[Params, Batch], jax.Array]:
        """Of each row [nats of its target, how many of its tokens were likeliest, its tokens, tokens written ...]."""

        def step(params: Params, batch: Batch) -> jax.Array:
            logits = seq2seq_logits(model, params, batch)
            losses, weights = cross_entropy(logits, batch["labels"])
            right = weights * (logits.argmax(-1) == batch["labels"]).astype(jnp.float32)
            assert isinstance(model.config, T5Config)
            written = likeliest(model.bind(params), model.config, batch, self.most)
            parts = [losses.sum(1), right.sum(1), weights.sum(1)]
            return jnp.concatenate([jnp.stack(parts, axis=1), written.astype(jnp.float32)], axis=1)

        return step

    def batches(self, examples: Examples, buckets: tuple[int, ...], batch_size: int, **where: Any) -> Iterator[dict[str, Any]]:
        return pair_batches(examples, buckets, batch_size, **{name: v for name, v in where.items() if name != "labeled_rows"})

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        targets = [label for label in rows.labels or () if label is not None]
        lines = zip(outputs, self.predictions(outputs, rows, examples), rows.labels or (), strict=True)
        labeled = [(output, line["prediction"]) for output, line, label in lines if label is not None]
        nats, right, tokens = map(float, np.sum(np.array([output[:3] for output, _ in labeled], np.float64), axis=0))
        return {"loss": nats / tokens, "accuracy": right / tokens} | text_scores([text for _, text in labeled], targets)

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        written = [[int(token) for token in output[3:] if token != FINISHED] for output in outputs]
        return [{"text": t, "prediction": self.decode(w)} for t, w in zip(rows.texts, written, strict=True)]


TASK = SequenceToSequence
