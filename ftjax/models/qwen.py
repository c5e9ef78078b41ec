"""Qwen2 (Yang et al., 2024, https://arxiv.org/abs/2407.10671): Llama with biases on queries, keys and values.

Qwen3 (Yang et al., 2025, https://arxiv.org/abs/2505.09388) has none; its queries and keys are normalised head by head.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.models.decoder import DecoderConfig, Design, Kind, layer_types, window_of
from ftjax.models.llama import names_of
from ftjax.models.names import NameTable
from ftjax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """Qwen2's numbers; the defaults are those of transformers."""

    model_type: ClassVar[str] = "qwen2"
    table: ClassVar[NameTable] = names_of("Qwen2")
    renamed: ClassVar[dict[str, str]] = {"rms_norm_eps": "norm_eps"}

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        self.only(config, source, mlp_bias=False)

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        rope = Rope.from_dict(config, source)
        window = window_of(self.sliding_window, source) if self.use_sliding_window else None
        usual = [window is not None and i >= self.max_window_layers for i in range(self.num_hidden_layers)]
        return tuple(Kind(window if short else None, rope) for short in layer_types(config, usual, source))

    @property
    def design(self) -> Design:
        return Design(query_scale=self.head_size**-0.5, qkv_bias=True)


@dataclasses.dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """Qwen3's numbers; the defaults are those of transformers."""

    model_type: ClassVar[str] = "qwen3"
    table: ClassVar[NameTable] = names_of("Qwen3")

    head_dim: int | None = 128
    attention_bias: bool = False

    @property
    def design(self) -> Design:
        return Design(
            query_scale=self.head_size**-0.5,
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            query_key_norm=True,
        )
