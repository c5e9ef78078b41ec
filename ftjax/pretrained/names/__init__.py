"""One table an architecture: our parameter names beside Hugging Face's, read in both directions."""

from __future__ import annotations

import dataclasses

from ftjax.models import Config
from ftjax.models.decoder import DecoderConfig
from ftjax.models.t5 import T5Config
from ftjax.pretrained.names import llama, t5
from ftjax.pretrained.names.bert import BERT
from ftjax.pretrained.names.distilbert import DISTILBERT
from ftjax.pretrained.names.electra import ELECTRA
from ftjax.pretrained.names.gpt2 import GPT2
from ftjax.pretrained.names.mpnet import MPNET
from ftjax.pretrained.names.roberta import ROBERTA, XLM_ROBERTA
from ftjax.pretrained.names.table import NameTable

GEMMA3 = dataclasses.replace(
    llama.table("Gemma3", output_norms=True), classes=("Gemma3TextForSequenceClassification", "Gemma3ForCausalLM")
)
TABLES: dict[str, NameTable] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "mpnet": MPNET,
    "t5": t5.table(gated=False),
    "gpt2": GPT2,
    "llama": llama.table("Llama"),
    "mistral": llama.table("Mistral"),
    "qwen2": llama.table("Qwen2"),
    "qwen3": llama.table("Qwen3"),
    "gemma2": llama.table("Gemma2", output_norms=True),
    "gemma3_text": GEMMA3,
}
"""By config.json's `model_type`."""


def table_of(config: Config) -> NameTable:
    """The table of an architecture's files."""
    table = TABLES[config.model_type]
    match config:
        case T5Config(gated=True):
            return t5.table(gated=True)
        case DecoderConfig(tie_word_embeddings=False):
            return dataclasses.replace(table, copies=())  # lm_head.weight is a matrix of its own
    return table
