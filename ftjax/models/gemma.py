"""Gemma 2 (2024, https://arxiv.org/abs/2408.00118) and the text part of Gemma 3 (2025, https://arxiv.org/abs/2503.19786).

In Gemma 2 every second layer looks back over a window, scores and logits are capped, attention and MLP are normalised
before and after. In Gemma 3 five layers of six have a window and rotary positions of their own, and queries and keys are
normalised instead of capped.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ftjax.errors import InputError
from ftjax.models.decoder import DecoderConfig, Design, Kind, layer_types, window_of
from ftjax.models.llama import names_of
from ftjax.models.names import NameTable
from ftjax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Gemma2Config(DecoderConfig):
    """Gemma 2's numbers; the defaults are those of 2B."""

    model_type: ClassVar[str] = "gemma2"
    table: ClassVar[NameTable] = names_of("Gemma2", output_norms=True)
    renamed: ClassVar[dict[str, str]] = {"rms_norm_eps": "norm_eps", "hidden_activation": "hidden_act", "hidden_act": ""}

    vocab_size: int = 256000
    hidden_size: int = 2304
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    intermediate_size: int = 9216
    max_position_embeddings: int = 8192
    hidden_act: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256.0
    sliding_window: int | None = 4096
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        if config.get("use_bidirectional_attention"):
            raise InputError(f"{source}: use_bidirectional_attention is not supported for {self.model_type}.")
        if self.query_pre_attn_scalar <= 0:
            raise InputError(f"{source}: query_pre_attn_scalar must be positive.")
        self.only(config, source, mlp_bias=False)

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        rope, window = Rope.from_dict(config, source), window_of(self.sliding_window, source)
        usual = [(i + 1) % 2 > 0 for i in range(self.num_hidden_layers)]
        return tuple(Kind(window if short else None, rope) for short in layer_types(config, usual, source))

    @property
    def design(self) -> Design:
        return Design(
            query_scale=self.query_pre_attn_scalar**-0.5,
            norm_offset=1.0,
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            output_norms=True,
            attention_softcap=self.attn_logit_softcapping,
            logit_softcap=self.final_logit_softcapping,
            embedding_scale=self.hidden_size**0.5,
        )


@dataclasses.dataclass(frozen=True)
class Gemma3Config(Gemma2Config):
    """The numbers of Gemma 3's text part; the defaults are those of transformers."""

    model_type: ClassVar[str] = "gemma3_text"
    table: ClassVar[NameTable] = dataclasses.replace(
        names_of("Gemma3", output_norms=True), classes=("Gemma3TextForSequenceClassification", "Gemma3ForCausalLM")
    )

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        self.only(config, source, attn_logit_softcapping=None)  # transformers' class leaves it out, whatever it is

    def kinds_of(self, config: dict[str, Any], source: str) -> tuple[Kind, ...]:
        given = config.get("rope_parameters") or {}
        if not isinstance(given, dict) or (given and not {"full_attention", "sliding_attention"} & set(given)):
            raise InputError(f"{source}: rope_parameters must be given for full_attention and sliding_attention.")
        plain = {name: value for name, value in config.items() if name not in ("rope_parameters", "rope_scaling", "rope_theta")}
        whole = {**(given.get("full_attention") or {}), **(config.get("rope_scaling") or {})}
        theta, local = config.get("rope_theta") or 1_000_000.0, config.get("rope_local_base_freq") or 10_000.0
        far = Kind(None, Rope.from_dict(plain, source, whole, theta))
        near = Kind(
            window_of(self.sliding_window, source), Rope.from_dict(plain, source, given.get("sliding_attention"), local)
        )
        pattern = config.get("sliding_window_pattern", 6)
        if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 1:
            raise InputError(f"{source}: sliding_window_pattern is {pattern!r}, not a positive number.")
        usual = [(i + 1) % pattern > 0 for i in range(self.num_hidden_layers)]
        return tuple(near if short else far for short in layer_types(config, usual, source))

    @property
    def design(self) -> Design:
        return dataclasses.replace(super().design, query_key_norm=True, attention_softcap=None)
