"""DistilBERT (Sanh et al., 2019, https://arxiv.org/abs/1910.01108): BERT of fewer layers, without token types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ftjax.models.body import Classifier, Pooling
from ftjax.models.names import NameTable, dense, embedding, norm
from ftjax.models.post_norm import PostNormConfig

LAYERS = "distilbert.transformer.layer.*"

NAMES = NameTable(
    prefix="distilbert.",
    rules=(
        *embedding("encoder.embeddings.word", "distilbert.embeddings.word_embeddings"),
        *embedding("encoder.embeddings.position", "distilbert.embeddings.position_embeddings"),
        *norm("encoder.embeddings.norm", "distilbert.embeddings.LayerNorm"),
        *dense("encoder.layers.*.attention.query", f"{LAYERS}.attention.q_lin"),
        *dense("encoder.layers.*.attention.key", f"{LAYERS}.attention.k_lin"),
        *dense("encoder.layers.*.attention.value", f"{LAYERS}.attention.v_lin"),
        *dense("encoder.layers.*.attention.output", f"{LAYERS}.attention.out_lin"),
        *norm("encoder.layers.*.attention_norm", f"{LAYERS}.sa_layer_norm"),
        *dense("encoder.layers.*.mlp.up", f"{LAYERS}.ffn.lin1"),
        *dense("encoder.layers.*.mlp.down", f"{LAYERS}.ffn.lin2"),
        *norm("encoder.layers.*.mlp_norm", f"{LAYERS}.output_layer_norm"),
        *dense("pooler", "pre_classifier"),
        *dense("classifier", "classifier"),
        *dense("masked_lm.transform", "vocab_transform"),
        *norm("masked_lm.norm", "vocab_layer_norm"),
        ("masked_lm.bias", "vocab_projector.bias", False),
    ),
    copies=(("vocab_projector.weight", "encoder.embeddings.word.embedding"),),
    carried=(
        r"distilbert\.embeddings\.position_ids",
        r"vocab_(transform|layer_norm|projector)\.(weight|bias)",
        r"(pre_)?classifier\.(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("DistilBertForSequenceClassification", "DistilBertForMaskedLM"),
)


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(PostNormConfig):
    """DistilBERT's numbers under BERT's names; the defaults are distilbert-base-uncased."""

    model_type: ClassVar[str] = "distilbert"
    table: ClassVar[NameTable] = NAMES
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
