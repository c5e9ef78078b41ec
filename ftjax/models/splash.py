"""Causal attention on TPUs where `flash` does not fit, as of very long rows: JAX's splash kernel.

It never writes the (queries, keys) scores to memory, and skips blocks that no query may see. The reference, on every platform
and for everything the kernel is not made for (a cache, one query, dropout on the weights, short rows, float32), is spelled out
in `ftjax.models.decoder`.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from ftjax.models.layers import ATTENTION
from ftjax.models.rope import Rotation, rotate

SHORTEST = 512
"""Tokens of a row from which on the kernel is taken: of shorter ones the scores are small beside the matrices."""
BLOCK, KEYS = 512, 2048
"""Queries, and keys, that are looked at together; keys over which gradients of queries are added up before they are written."""
LANES = 128


def fits(length: int, head_size: int) -> bool:
    """Whether the kernel can do rows of this length and heads of this size, and should."""
    return length >= SHORTEST and length % LANES == 0 and head_size % 64 == 0


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rotation: Rotation | None,
    segments: jax.Array,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Attention to the tokens before, and itself: (batch, length, heads, head_size) in the dtype of `value`.

    query (batch, length, heads, head_size); key, value (batch, length, key-value heads, head_size). rotation: turns queries and
    keys first. segments: int32 (batch, length); a token sees those of its own segment alone (an attention mask will do: what
    padding sees, nobody reads).
    window: how many positions back a token sees, itself included; None: all. scale, softcap: see `ftjax.models.decoder.Design`.
    interpret: run the kernel on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, dtype = query.shape[1], value.dtype
    if rotation is not None:
        # so that `remat` "dots" keeps them as they are needed: turned, not turned anew in the backward pass
        query, key = (checkpoint_name(rotate(x, rotation), ATTENTION) for x in (query, key))
    mask = masks.CausalMask((length,) * 2) if window is None else masks.LocalMask((length,) * 2, (window - 1, 0), 0)
    edge, keys = (max(n for n in range(LANES, min(most, length) + 1, LANES) if length % n == 0) for most in (BLOCK, KEYS))
    edge = edge if keys % edge == 0 else keys
    blocks = kernel.BlockSizes(
        *(edge,) * 3, block_q_dkv=edge, block_kv_dkv=keys, block_kv_dkv_compute=edge, use_fused_bwd_kernel=True
    )
    run = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    # the kernel knows of no scale, so queries bring it along; heads come before positions there
    q, k, v = (x.swapaxes(1, 2) for x in ((query * scale).astype(dtype), key.astype(dtype), value))
    return jax.vmap(run)(q, k, v, kernel.SegmentIds(segments, segments)).swapaxes(1, 2)
