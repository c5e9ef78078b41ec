"""RoBERTa's and XLM-R's names: BERT's, with a pooler that belongs to the classifier, and a head of their own."""

from __future__ import annotations

import dataclasses

from ftjax.pretrained.names.bert import encoder
from ftjax.pretrained.names.table import NameTable, dense, norm

ROBERTA = NameTable(
    prefix="roberta.",
    rules=(
        *encoder("roberta."),
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
        r"roberta\.embeddings\.(position_ids|token_type_ids)",
        r"roberta\.pooler\.dense\.(weight|bias)",  # the base model's, which no classifier reads
        r"lm_head\..*",
        r"classifier\.((dense|out_proj)\.)?(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("RobertaForSequenceClassification", "RobertaForMaskedLM"),
)
XLM_ROBERTA = dataclasses.replace(ROBERTA, classes=("XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"))
