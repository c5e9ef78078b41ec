"""MPNet (Song et al., 2020, https://arxiv.org/abs/2004.09297): RoBERTa whose attention also knows how far apart tokens are.

Chosen before DeBERTa-v3, which is better at classification with many labels, for two reasons: the encoders that sentence
embeddings and few-label methods start from are MPNets (all-mpnet-base-v2, SetFit's paraphrase-mpnet-base-v2), and it is
the shared post-norm layer with one more bias on the scores, where DeBERTa's disentangled attention shares nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ftjax.models.body import Pooling
from ftjax.models.layers import Embedding, relative_buckets
from ftjax.models.names import NameTable, dense, embedding, norm
from ftjax.models.post_norm import Context, PostNormConfig, PostNormEncoder
from ftjax.models.roberta import names_of

BUCKETS, MAX_DISTANCE, PADDING = 32, 128, 1  # fixed in transformers' code, whatever config.json says

LAYERS = "mpnet.encoder.layer.*"
ENCODER = (
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
)


@dataclasses.dataclass(frozen=True)
class MPNetConfig(PostNormConfig):
    """MPNet's numbers; the defaults are those of transformers' MPNetConfig."""

    model_type: ClassVar[str] = "mpnet"
    table: ClassVar[NameTable] = names_of("mpnet", "MPNet", ENCODER, "position_ids")
    pooling: ClassVar[Pooling] = Pooling(dropout_before=True)

    vocab_size: int = 30527
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    pad_token_id: int | None = PADDING

    def check(self, config: dict[str, Any], source: str) -> None:
        super().check(config, source)
        self.only(config, source, relative_attention_num_buckets=BUCKETS, pad_token_id=PADDING)

    def body(self, dtype: jnp.dtype) -> MPNetEncoder:
        return MPNetEncoder(self, dtype)

    @property
    def padding_id(self) -> int:
        return PADDING

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - PADDING - 1


class MPNetEncoder(PostNormEncoder):
    """The shared encoder with a learned number, by bucketed distance and head, on every score of every layer."""

    def __init__(self, config: MPNetConfig, dtype: jnp.dtype) -> None:
        super().__init__(config, dtype)
        self.embeddings.relative_attention_bias = Embedding(BUCKETS, config.num_attention_heads)

    def context(self, batch: Mapping[str, jax.Array]) -> Context:
        """Of which the bias is float32 (batch, heads, length, length)."""
        bias, reads = super().context(batch)
        rows, length = batch["attention_mask"].shape
        buckets = relative_buckets(length, length, buckets=BUCKETS, max_distance=MAX_DISTANCE)
        relative = self.embeddings.relative_attention_bias(buckets).transpose(2, 0, 1)[None]
        shape = (rows, *relative.shape[1:])
        return Context(jnp.broadcast_to(bias, shape) + jnp.broadcast_to(relative, shape), reads)
