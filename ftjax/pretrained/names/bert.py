"""BERT's names, which RoBERTa's and ELECTRA's files share but for the prefix and the heads."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, Rule, dense, embedding, norm


def encoder(prefix: str) -> tuple[Rule, ...]:
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


BERT = NameTable(
    prefix="bert.",
    rules=(
        *encoder("bert."),
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
