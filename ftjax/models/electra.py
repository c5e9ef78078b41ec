"""ELECTRA's discriminator (Clark et al., 2020, https://arxiv.org/abs/2003.10555): BERT with narrower embeddings if wanted.

It has learnt to tell replaced tokens from true ones and has no masked language model; that is the generator's.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.errors import InputError
from ftjax.models.bert import BertConfig, encoder_names
from ftjax.models.body import OF_TOKENS, Classifier, Pooling
from ftjax.models.names import NameTable, dense

NAMES = NameTable(
    prefix="electra.",
    rules=(
        *encoder_names("electra."),
        *dense("encoder.embeddings.projection", "electra.embeddings_project"),
        *dense("pooler", "classifier.dense"),
        *dense("classifier", "classifier.out_proj"),
    ),
    carried=(
        r"electra\.embeddings\.(position_ids|token_type_ids)",
        r"discriminator_predictions\..*",
        r"generator_(predictions|lm_head)\..*",
        r"classifier\.((dense|out_proj)\.)?(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("ElectraForSequenceClassification", ""),
)
"""BERT's, with a projection of the embeddings, and a pooler that belongs to the classifier."""


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """ELECTRA's numbers; the defaults are electra-small-discriminator."""

    model_type: ClassVar[str] = "electra"
    table: ClassVar[NameTable] = NAMES
    classifiers: ClassVar[tuple[Classifier, ...]] = ("pooled", "first-token", "mean", *OF_TOKENS)
    pooling: ClassVar[Pooling] = Pooling(activation="gelu", dropout_before=True)
    has_masked_lm: ClassVar[bool] = False

    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    embedding_size: int = 128

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        if self.embedding_size < 1:
            raise InputError(f"{source}: embedding_size must be positive.")

    @property
    def embedding_width(self) -> int:
        return self.embedding_size
