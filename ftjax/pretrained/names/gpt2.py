"""GPT-2's names. Its linear layers are (features_in, features_out) as ours are; queries, keys and values share one tensor."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, Rule, embedding, norm

LAYERS = "transformer.h.*"


def _conv(ours: str, theirs: str, part: str = "") -> tuple[Rule, ...]:
    return (f"{ours}.kernel", f"{theirs}.weight{part}", False), (f"{ours}.bias", f"{theirs}.bias{part}", False)


GPT2 = NameTable(
    prefix="transformer.",
    rules=(
        *embedding("decoder.embeddings.word", "transformer.wte"),
        *embedding("decoder.embeddings.position", "transformer.wpe"),
        *norm("decoder.layers.*.attention_norm", f"{LAYERS}.ln_1"),
        *_conv("decoder.layers.*.attention.query", f"{LAYERS}.attn.c_attn", "/query"),
        *_conv("decoder.layers.*.attention.key", f"{LAYERS}.attn.c_attn", "/key"),
        *_conv("decoder.layers.*.attention.value", f"{LAYERS}.attn.c_attn", "/value"),
        *_conv("decoder.layers.*.attention.output", f"{LAYERS}.attn.c_proj"),
        *norm("decoder.layers.*.mlp_norm", f"{LAYERS}.ln_2"),
        *_conv("decoder.layers.*.mlp.up", f"{LAYERS}.mlp.c_fc"),
        *_conv("decoder.layers.*.mlp.down", f"{LAYERS}.mlp.c_proj"),
        *norm("decoder.norm", "transformer.ln_f"),
        ("classifier.kernel", "score.weight", True),
        ("lm_head.kernel", "lm_head.weight", True),
    ),
    copies=(("lm_head.weight", "decoder.embeddings.word.embedding"),),
    carried=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\.weight", r"score\.weight"),
    classes=("GPT2ForSequenceClassification", "GPT2LMHeadModel"),
)
