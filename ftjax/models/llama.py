"""Llama (Touvron et al., 2023, https://arxiv.org/abs/2302.13971) up to 3.x, and models of its architecture such as SmolLM2.

Mistral (Jiang et al., 2023, https://arxiv.org/abs/2310.06825) is the same, looking back over a window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.models.decoder import DecoderConfig, Design, Kind, window_of
from ftjax.models.names import NameTable, dense, embedding
from ftjax.models.rope import Rope

LAYERS = "model.layers.*"


def names_of(family: str, *, output_norms: bool = False) -> NameTable:
    """Llama's names, which Mistral, Qwen and Gemma share but for Gemma's norms.

    family: how transformers' classes begin. output_norms: Gemma's, where post_attention_layernorm is another one."""
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


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """Llama's numbers; the defaults are Llama 2's, 7B."""

    model_type: ClassVar[str] = "llama"
    table: ClassVar[NameTable] = names_of("Llama")
    renamed: ClassVar[dict[str, str]] = {"rms_norm_eps": "norm_eps"}

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_size: int = 11008
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def design(self) -> Design:
        return Design(
            query_scale=self.head_size**-0.5,
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
        )


@dataclasses.dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """Mistral's numbers; the defaults are those of 7B v0.1."""

    model_type: ClassVar[str] = "mistral"
    table: ClassVar[NameTable] = names_of("Mistral")
    renamed: ClassVar[dict[str, str]] = {"rms_norm_eps": "norm_eps"}

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    intermediate_size: int = 14336
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        self.only(config, source, attention_bias=False, mlp_bias=False, layer_types=None)

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        kind = Kind(window_of(self.sliding_window, source), Rope.from_dict(config, source))
        return (kind,) * self.num_hidden_layers

    @property
    def design(self) -> Design:
        return Design(query_scale=self.head_size**-0.5)
