"""ELECTRA's names: BERT's, with a projection of the embeddings, and a pooler that belongs to the classifier."""

from __future__ import annotations

from ftjax.pretrained.names.bert import encoder
from ftjax.pretrained.names.table import NameTable, dense

ELECTRA = NameTable(
    prefix="electra.",
    rules=(
        *encoder("electra."),
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
