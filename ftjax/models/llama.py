"""Llama (Touvron et al., 2023, https://arxiv.org/abs/2302.13971) up to 3.x, and models of its architecture such as SmolLM2.

Mistral (Jiang et al., 2023, https://arxiv.org/abs/2310.06825) is the same, looking back over a window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.models.decoder import DecoderConfig, Design, Kind, window_of
from ftjax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """Llama's numbers; the defaults are Llama 2's, 7B."""

    model_type: ClassVar[str] = "llama"
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
