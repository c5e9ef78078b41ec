"""Named shapes: what `--model` of `ftjax plan` and `ftjax benchmark` takes besides directories, when no weights are needed.

A shape is what a config.json would say; its `model_type` decides the architecture. A new name is a line here.
"""

from __future__ import annotations

from typing import Any


def _bert(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """BERT with the uncased English vocabulary of 30,522 word pieces; an MLP of 4 x hidden."""
    return {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
    }


def _llama(layers: int, hidden: int, intermediate: int, **more: Any) -> dict[str, Any]:
    """Llama 3 with its 128,256 tokens; 32 heads, 8 of keys and values (Dubey et al., 2024, table 3)."""
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": intermediate,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        **more,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "minilm-l6": _bert(6, 384, 12),  # sentence-transformers/all-MiniLM-L6-v2, Wang et al., 2020
    "bert-base": _bert(12, 768, 12),  # Devlin et al., 2019, section 3
    "bert-large": _bert(24, 1024, 16),
    "llama-1b": _llama(16, 2048, 8192, tie_word_embeddings=True),
    "llama-8b": _llama(32, 4096, 14336, tie_word_embeddings=False),
}
"""Name -> config.json."""
