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


SHAPES: dict[str, dict[str, Any]] = {
    "minilm-l6": _bert(6, 384, 12),  # sentence-transformers/all-MiniLM-L6-v2, Wang et al., 2020
    "bert-base": _bert(12, 768, 12),  # Devlin et al., 2019, section 3
    "bert-large": _bert(24, 1024, 16),
}
"""Name -> config.json."""
