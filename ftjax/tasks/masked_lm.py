"""Texts with gaps: masked tokens are predicted from all around them, as in an encoder's pretraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np

from ftjax.data.files import Rows
from ftjax.data.tokenize import Examples, encode
from ftjax.errors import InputError
from ftjax.models import Model, Params
from ftjax.objective import Vocabulary, masked_lm
from ftjax.objectives import Batch
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.tasks.task import LOSS, Head, Metric, Outputs
from ftjax.tasks.texts import TextTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASKING = ("mask_probability", "mask_whole_words")  # what a trained model's masks are


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(TextTask):
    """Rows are texts. To score, a row always has the same masks. Fields: see `ftjax.objective.Masking`."""

    name: ClassVar[str] = "masked-lm"
    metrics: ClassVar[dict[str, Metric]] = {"loss": LOSS, "accuracy": Metric("masked-token accuracy")}
    head: ClassVar[Head] = "masked_lm"

    model: str = "the model"
    mask_probability: float = 0.15
    mask_whole_words: bool = False
    mask_once: bool = False
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, settings: Any) -> Self:
        names = ("model", *MASKING, "mask_once")
        return dataclasses.replace(super().of(settings), **{n: getattr(settings, n) for n in names if hasattr(settings, n)})

    @classmethod
    def trained(cls, raw_config: dict[str, Any]) -> bool:
        return any(name.endswith("ForMaskedLM") for name in raw_config.get("architectures") or ())

    @classmethod
    def saved(cls, settings: Any, raw_config: dict[str, Any], labels: tuple[str, ...]) -> Self:
        noted = raw_config.get("ftjax_masking") or {}
        if wrong := [name for name in MASKING if not isinstance(noted.get(name, 0), int | float)]:
            raise InputError(f"config.json: {wrong[0]} of ftjax_masking is {noted[wrong[0]]!r}, not a number, true or false.")
        return dataclasses.replace(cls.of(settings), **{name: noted[name] for name in MASKING if name in noted})

    def notes(self) -> dict[str, Any]:
        return {"ftjax_masking": {name: getattr(self, name) for name in MASKING}}

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        return dataclasses.replace(self, vocabulary=vocabulary)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Examples:
        found = encode(dataclasses.replace(rows, labels=None), tokenizer, (), max_length)
        return dataclasses.replace(found, labels=np.zeros_like(found.labels))

    def made_up(self, examples: Examples) -> Examples:
        return dataclasses.replace(examples, labels=np.zeros(len(examples), np.int32))

    def loss(self, model: Model) -> MaskedLM:
        assert self.vocabulary is not None
        return masked_lm(self, self.vocabulary, model)

    def outputs(self, model: Model) -> Callable[[Params, Batch], jax.Array]:
        """Of each row the nats of its masked tokens, how many were the likeliest, how many there are."""
        return lambda params, batch: self.loss(model).by_row(params, batch, None)

    def scores(self, outputs: Outputs, rows: Rows, examples: Examples) -> dict[str, float]:
        nats, right, tokens = map(float, np.array(outputs, np.float64).sum(0))
        return {"loss": nats / max(tokens, 1), "accuracy": right / max(tokens, 1)}

    def predictions(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        """How well a row's masked tokens are found: {"text", "loss", "tokens"}."""
        lines = zip(rows.texts, np.array(outputs, np.float64).tolist(), strict=True)
        return [{"text": text, "loss": nats / max(tokens, 1), "tokens": int(tokens)} for text, (nats, _, tokens) in lines]

    def told(self, outputs: Outputs, rows: Rows, examples: Examples) -> list[dict[str, Any]]:
        return self.predictions(outputs, rows, examples)


TASK = MaskedLanguageModel
