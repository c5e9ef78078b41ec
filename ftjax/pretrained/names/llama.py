"""Llama's names, which Mistral, Qwen and Gemma share but for Gemma's norms."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, dense, embedding

LAYERS = "model.layers.*"


def table(family: str, *, output_norms: bool = False) -> NameTable:
    """family: how transformers' classes begin. output_norms: Gemma's, where post_attention_layernorm is another one."""
    around = (("mlp_norm", "post_attention_layernorm"),)
    if output_norms:
        around = (
            ("attention_output_norm", "post_attention_layernorm"),
            ("mlp_norm", "pre_feedforward_layernorm"),
            ("mlp_output_norm", "post_feedforward_layernorm"),
        )
    norms = (
        ("attention_norm", "input_layernorm"),
        *around,
        ("attention.query_norm", "self_attn.q_norm"),
        ("attention.key_norm", "self_attn.k_norm"),
    )
    return NameTable(
        prefix="model.",
        rules=(
            *embedding("decoder.embeddings.word", "model.embed_tokens"),
            *((f"decoder.layers.*.{ours}.scale", f"{LAYERS}.{theirs}.weight", False) for ours, theirs in norms),
            *dense("decoder.layers.*.attention.query", f"{LAYERS}.self_attn.q_proj"),
            *dense("decoder.layers.*.attention.key", f"{LAYERS}.self_attn.k_proj"),
            *dense("decoder.layers.*.attention.value", f"{LAYERS}.self_attn.v_proj"),
            *dense("decoder.layers.*.attention.output", f"{LAYERS}.self_attn.o_proj"),
            *dense("decoder.layers.*.mlp.gate", f"{LAYERS}.mlp.gate_proj"),
            *dense("decoder.layers.*.mlp.up", f"{LAYERS}.mlp.up_proj"),
            *dense("decoder.layers.*.mlp.down", f"{LAYERS}.mlp.down_proj"),
            ("decoder.norm.scale", "model.norm.weight", False),
            ("classifier.kernel", "score.weight", True),
            ("lm_head.kernel", "lm_head.weight", True),
        ),
        copies=(("lm_head.weight", "decoder.embeddings.word.embedding"),),
        carried=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight", r"score\.weight"),
        classes=(f"{family}ForSequenceClassification", f"{family}ForCausalLM"),
    )
