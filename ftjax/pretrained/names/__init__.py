"""One table an architecture: our parameter names beside Hugging Face's, read in both directions."""

from __future__ import annotations

from ftjax.models import Config
from ftjax.models.t5 import T5Config
from ftjax.pretrained.names import t5
from ftjax.pretrained.names.bert import BERT
from ftjax.pretrained.names.distilbert import DISTILBERT
from ftjax.pretrained.names.electra import ELECTRA
from ftjax.pretrained.names.mpnet import MPNET
from ftjax.pretrained.names.roberta import ROBERTA, XLM_ROBERTA
from ftjax.pretrained.names.table import NameTable

TABLES: dict[str, NameTable] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "mpnet": MPNET,
    "t5": t5.table(gated=False),
}
"""By config.json's `model_type`."""


def table_of(config: Config) -> NameTable:
    """The table of an architecture's files."""
    return t5.table(gated=True) if isinstance(config, T5Config) and config.gated else TABLES[config.model_type]
