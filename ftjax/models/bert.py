"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ftjax.models.post_norm import PostNormConfig


@dataclasses.dataclass(frozen=True)
class BertConfig(PostNormConfig):
    """BERT's numbers; the defaults are bert-base-uncased."""

    model_type: ClassVar[str] = "bert"
    dropout_fields: ClassVar[tuple[str, ...]] = (*PostNormConfig.dropout_fields, "classifier_dropout")

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    classifier_dropout: float | None = None

    @property
    def token_types(self) -> int:
        return self.type_vocab_size

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def masked_lm_activation(self) -> str:
        return self.hidden_act
