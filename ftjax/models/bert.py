"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ftjax.models.names import NameTable, Rule, dense, embedding, norm
from ftjax.models.post_norm import PostNormConfig


def encoder_names(prefix: str) -> tuple[Rule, ...]:
    """Embeddings and layers."""
    layers = f"{prefix}encoder.layer.*"
    return (
        *embedding("encoder.embeddings.word", f"{prefix}embeddings.word_embeddings"),
        *embedding("encoder.embeddings.position", f"{prefix}embeddings.position_embeddings"),
        *embedding("encoder.embeddings.token_type", f"{prefix}embeddings.token_type_embeddings"),
        *norm("encoder.embeddings.norm", f"{prefix}embeddings.LayerNorm"),
        *dense("encoder.layers.*.attention.query", f"{layers}.attention.self.query"),
        *dense("encoder.layers.*.attention.key", f"{layers}.attention.self.key"),
        *dense("encoder.layers.*.attention.value", f"{layers}.attention.self.value"),
        *dense("encoder.layers.*.attention.output", f"{layers}.attention.output.dense"),
        *norm("encoder.layers.*.attention_norm", f"{layers}.attention.output.LayerNorm"),
        *dense("encoder.layers.*.mlp.up", f"{layers}.intermediate.dense"),
        *dense("encoder.layers.*.mlp.down", f"{layers}.output.dense"),
        *norm("encoder.layers.*.mlp_norm", f"{layers}.output.LayerNorm"),
    )


NAMES = NameTable(
    prefix="bert.",
    rules=(
        *encoder_names("bert."),
        *dense("pooler", "bert.pooler.dense"),
        *dense("classifier", "classifier"),
        *dense("masked_lm.transform", "cls.predictions.transform.dense"),
        *norm("masked_lm.norm", "cls.predictions.transform.LayerNorm"),
        ("masked_lm.bias", "cls.predictions.bias", False),
    ),
    copies=(
        ("cls.predictions.decoder.weight", "encoder.embeddings.word.embedding"),
        ("cls.predictions.decoder.bias", "masked_lm.bias"),
    ),
    carried=(
        r"bert\.embeddings\.(position_ids|token_type_ids)",
        r"bert\.pooler\.dense\.(weight|bias)",
        r"cls\.predictions\..*",
        r"cls\.seq_relationship\.(weight|bias)",
        r"classifier\.(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("BertForSequenceClassification", "BertForMaskedLM"),
)


@dataclasses.dataclass(frozen=True)
class BertConfig(PostNormConfig):
    """BERT's numbers; the defaults are bert-base-uncased."""

    model_type: ClassVar[str] = "bert"
    table: ClassVar[NameTable] = NAMES
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
