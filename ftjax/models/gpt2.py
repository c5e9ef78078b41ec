"""GPT-2 (Radford et al., 2019): learned positions, layer norm before attention and MLP, biases everywhere."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

from ftjax.models.decoder import DecoderConfig, Design, Kind
from ftjax.models.names import NameTable, Rule, embedding, norm

LAYERS = "transformer.h.*"


def _conv(ours: str, theirs: str, part: str = "") -> tuple[Rule, ...]:
    return (f"{ours}.kernel", f"{theirs}.weight{part}", False), (f"{ours}.bias", f"{theirs}.bias{part}", False)


NAMES = NameTable(
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
"""Its linear layers are (features_in, features_out) as ours are; queries, keys and values share one tensor."""


@dataclasses.dataclass(frozen=True)
class GPT2Config(DecoderConfig):
    """GPT-2's numbers; the defaults are those of the smallest model."""

    model_type: ClassVar[str] = "gpt2"
    table: ClassVar[NameTable] = NAMES
    renamed: ClassVar[dict[str, str]] = {
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "norm_eps",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "residual_dropout",
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu_new"
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    embedding_dropout: float = 0.1
    scale_attn_weights: bool = True

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str) -> Self:
        hidden = config.get("n_embd", cls.hidden_size)
        if config.get("n_inner") is None and isinstance(hidden, int):  # most files say null
            config = {**config, "n_inner": 4 * hidden}
        return super().from_dict(config, source)

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        self.only(config, source, scale_attn_by_inverse_layer_idx=False, num_key_value_heads=None, head_dim=None)

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        return (Kind(window=None, rope=None),) * self.num_hidden_layers

    @property
    def design(self) -> Design:
        return Design(
            query_scale=self.head_size**-0.5 if self.scale_attn_weights else 1.0,
            norm="layer",
            gated=False,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
        )
