"""MPNet's names: RoBERTa's heads, and layers with words of their own."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, dense, embedding, norm

LAYERS = "mpnet.encoder.layer.*"

MPNET = NameTable(
    prefix="mpnet.",
    rules=(
        *embedding("encoder.embeddings.word", "mpnet.embeddings.word_embeddings"),
        *embedding("encoder.embeddings.position", "mpnet.embeddings.position_embeddings"),
        *embedding("encoder.embeddings.relative_attention_bias", "mpnet.encoder.relative_attention_bias"),
        *norm("encoder.embeddings.norm", "mpnet.embeddings.LayerNorm"),
        *dense("encoder.layers.*.attention.query", f"{LAYERS}.attention.attn.q"),
        *dense("encoder.layers.*.attention.key", f"{LAYERS}.attention.attn.k"),
        *dense("encoder.layers.*.attention.value", f"{LAYERS}.attention.attn.v"),
        *dense("encoder.layers.*.attention.output", f"{LAYERS}.attention.attn.o"),
        *norm("encoder.layers.*.attention_norm", f"{LAYERS}.attention.LayerNorm"),
        *dense("encoder.layers.*.mlp.up", f"{LAYERS}.intermediate.dense"),
        *dense("encoder.layers.*.mlp.down", f"{LAYERS}.output.dense"),
        *norm("encoder.layers.*.mlp_norm", f"{LAYERS}.output.LayerNorm"),
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
        r"mpnet\.embeddings\.position_ids",
        r"mpnet\.pooler\.dense\.(weight|bias)",  # the base model's, which no classifier reads
        r"lm_head\..*",
        r"classifier\.((dense|out_proj)\.)?(weight|bias)",
        r"qa_outputs\.(weight|bias)",
    ),
    classes=("MPNetForSequenceClassification", "MPNetForMaskedLM"),
)
