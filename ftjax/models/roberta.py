"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692) and XLM-R (Conneau et al., 2020, https://arxiv.org/abs/1911.02116).

Unlike BERT they count positions from the id of padding on, which leaves out padding wherever it is; so two of 514 positions
have no token. The classifier's dense layer is its own, not the base model's pooler.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.errors import InputError
from ftjax.models.bert import BertConfig, encoder_names
from ftjax.models.body import Pooling
from ftjax.models.names import NameTable, Rule, dense, norm


def names_of(prefix: str, family: str, encoder: tuple[Rule, ...], buffers: str) -> NameTable:
    """An encoder with RoBERTa's heads: a pooler that belongs to the classifier, and a masked-language-modelling head.

    buffers: a pattern for what else its embeddings may have in files.
    """
    return NameTable(
        prefix=f"{prefix}.",
        rules=(
            *encoder,
            *dense("pooler", "classifier.dense"),
            *dense("classifier", "classifier.out_proj"),
            *dense("masked_lm.transform", "lm_head.dense"),
            *norm("masked_lm.norm", "lm_head.layer_norm"),
            ("masked_lm.bias", "lm_head.bias", False),
        ),
        copies=(
            ("lm_head.decoder.weight", "encoder.embeddings.word.embedding"),
            ("lm_head.decoder.bias", "masked_lm.bias"),
        ),
        carried=(
            rf"{prefix}\.embeddings\.{buffers}",
            rf"{prefix}\.pooler\.dense\.(weight|bias)",  # the base model's, which no classifier reads
            r"lm_head\..*",
            r"classifier\.((dense|out_proj)\.)?(weight|bias)",
            r"qa_outputs\.(weight|bias)",
        ),
        classes=(f"{family}ForSequenceClassification", f"{family}ForMaskedLM"),
    )


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa's numbers; the defaults are those of transformers' RobertaConfig."""

    model_type: ClassVar[str] = "roberta"
    table: ClassVar[NameTable] = names_of("roberta", "Roberta", encoder_names("roberta."), "(position_ids|token_type_ids)")
    pooling: ClassVar[Pooling] = Pooling(dropout_before=True)

    vocab_size: int = 50265
    pad_token_id: int | None = 1

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        if self.pad_token_id is None:
            raise InputError(f"{source}: pad_token_id is missing; positions of {self.model_type} are counted from it.")

    @property
    def padding_id(self) -> int | None:
        return self.pad_token_id

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    @property
    def masked_lm_activation(self) -> str:
        return "gelu"


@dataclasses.dataclass(frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """XLM-R's numbers; the defaults are those of transformers' XLMRobertaConfig."""

    model_type: ClassVar[str] = "xlm-roberta"
    table: ClassVar[NameTable] = dataclasses.replace(
        RobertaConfig.table, classes=("XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM")
    )

    vocab_size: int = 30522
