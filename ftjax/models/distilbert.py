"""DistilBERT (Sanh et al., 2019, https://arxiv.org/abs/1910.01108): BERT of fewer layers, without token types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ftjax.models.body import Classifier, Pooling
from ftjax.models.post_norm import PostNormConfig


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(PostNormConfig):
    """DistilBERT's numbers under BERT's names; the defaults are distilbert-base-uncased."""

    model_type: ClassVar[str] = "distilbert"
    renamed: ClassVar[Mapping[str, str]] = {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "seq_classif_dropout": "classifier_dropout",
        "layer_norm_eps": "",  # fixed at 1e-12
    }
    dropout_fields: ClassVar[tuple[str, ...]] = (*PostNormConfig.dropout_fields, "classifier_dropout", "qa_dropout")
    attention_output_dropout: ClassVar[bool] = False
    pooling: ClassVar[Pooling] = Pooling(activation="relu")

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    classifier_dropout: float = 0.2
    qa_dropout: float = 0.1

    @property
    def head_dropout(self) -> float:
        return self.classifier_dropout

    def dropout_of(self, classifier: Classifier | None) -> float:
        own = {"every-token": self.hidden_dropout_prob, "span": self.qa_dropout}
        return own.get(classifier or "", self.head_dropout)

    @property
    def masked_lm_activation(self) -> str:
        return self.hidden_act
