"""DistilBERT's names."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, dense, embedding, norm

LAYERS = "distilbert.transformer.layer.*"

DISTILBERT = NameTable(
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
