"""T5's names. Base and task models spell alike. A gated feed-forward network has two matrices where a plain one has one."""

from __future__ import annotations

from ftjax.pretrained.names.table import NameTable, Rule, embedding


def _dense(ours: str, theirs: str) -> Rule:
    return (f"{ours}.kernel", f"{theirs}.weight", True)  # no layer of T5 has a bias


def _scale(ours: str, theirs: str) -> Rule:
    return (f"{ours}.scale", f"{theirs}.weight", False)


def _attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return tuple(_dense(f"{ours}.{name}", f"{theirs}.{name[0]}") for name in ("query", "key", "value", "output"))


def _mlp(ours: str, theirs: str, gated: bool) -> tuple[Rule, ...]:
    up = (_dense(f"{ours}.gate", f"{theirs}.wi_0"), _dense(f"{ours}.up", f"{theirs}.wi_1"))
    return (*(up if gated else (_dense(f"{ours}.up", f"{theirs}.wi"),)), _dense(f"{ours}.down", f"{theirs}.wo"))


def table(*, gated: bool) -> NameTable:
    """For a feed-forward network with or without a gate."""
    encoder, decoder = "encoder.block.*.layer", "decoder.block.*.layer"
    relative = "block.0.layer.0.SelfAttention.relative_attention_bias"
    return NameTable(
        prefix="",
        rules=(
            *embedding("encoder.embeddings.word", "shared"),
            *embedding("encoder.embeddings.relative_attention_bias", f"encoder.{relative}"),
            *_attention("encoder.layers.*.attention", f"{encoder}.0.SelfAttention"),
            _scale("encoder.layers.*.attention_norm", f"{encoder}.0.layer_norm"),
            *_mlp("encoder.layers.*.mlp", f"{encoder}.1.DenseReluDense", gated),
            _scale("encoder.layers.*.mlp_norm", f"{encoder}.1.layer_norm"),
            _scale("encoder.norm", "encoder.final_layer_norm"),
            *embedding("decoder.embeddings.relative_attention_bias", f"decoder.{relative}"),
            *_attention("decoder.layers.*.attention", f"{decoder}.0.SelfAttention"),
            _scale("decoder.layers.*.attention_norm", f"{decoder}.0.layer_norm"),
            *_attention("decoder.layers.*.cross_attention", f"{decoder}.1.EncDecAttention"),
            _scale("decoder.layers.*.cross_attention_norm", f"{decoder}.1.layer_norm"),
            *_mlp("decoder.layers.*.mlp", f"{decoder}.2.DenseReluDense", gated),
            _scale("decoder.layers.*.mlp_norm", f"{decoder}.2.layer_norm"),
            _scale("decoder.norm", "decoder.final_layer_norm"),
            _dense("lm_head", "lm_head"),
        ),
        copies=tuple(
            (name, "encoder.embeddings.word.embedding")
            for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        ),
        carried=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        classes=("", "T5ForConditionalGeneration"),
    )
