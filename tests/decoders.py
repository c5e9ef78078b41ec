"""Tiny random decoders of every family, as Hugging Face directories; what several test files share."""

import functools
import json

import jax
import numpy as np
import pytest
from conftest import random_params
from safetensors.numpy import save_file

from ftjax.models import CONFIGS, build

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "gpt2": GPT2 | {"n_inner": None},
    "gpt2, its own head": GPT2
    | {"n_inner": 40, "tie_word_embeddings": False, "activation_function": "relu", "scale_attn_weights": False},
    "llama": SMALL | {"model_type": "llama", "rope_theta": 500.0, "tie_word_embeddings": True},
    "llama 3": SMALL
    | {"model_type": "llama", "rope_scaling": LLAMA_3_ROPE, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "llama, linear": SMALL
    | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 5},
    "qwen2": SMALL | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "gemma2": SMALL
    | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24, "pad_token_id": 0},
    "gemma3": SMALL
    | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 24,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "pad_token_id": 0,
    },
}
"""Name -> config.json, each with what makes the family differ."""


def write_decoder(directory, raw, *, labels=None, causal_lm=True, prefixed=True, dtype=np.float32, seed=0):
    """A directory as Hugging Face writes it; returns its tensors."""
    config = CONFIGS[raw["model_type"]].from_dict(raw, "config.json")
    model = build(config, causal_lm=causal_lm, num_labels=labels and len(labels))
    table = CONFIGS[raw["model_type"]].table
    tensors = {}
    for ours, value in random_params(model, seed=seed, scale=0.2).items():
        theirs, transposed = table.theirs(ours)
        tensors[theirs] = np.asarray(value).T if transposed else np.asarray(value)
    tensors = {
        name if prefixed else name.removeprefix(table.prefix): np.ascontiguousarray(array.astype(dtype))
        for name, array in table.join(tensors).items()
    }
    if labels:
        raw = raw | {"id2label": dict(enumerate(labels)), "architectures": [table.classes[0]]}
    else:
        raw = raw | {"architectures": [table.classes[1]]}
    directory.mkdir(exist_ok=True, parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(raw))
    return tensors


def write_keras_gpt2(directory, **heads):
    """A GPT-2 directory with tf_model.h5, as transformers 4's TensorFlow class lays it out, in the place of safetensors."""
    h5py = pytest.importorskip("h5py")
    tensors = write_decoder(directory, FAMILIES["gpt2"], **heads)
    (directory / "model.safetensors").unlink()
    with h5py.File(directory / "tf_model.h5", "w") as file:
        for name, tensor in tensors.items():
            *words, last = name.split(".")
            if "ln_" in words[-1]:
                last = {"weight": "gamma", "bias": "beta"}[last]
            elif words[-1] == "score":
                last, tensor = "kernel", tensor.T
            elif words[-1] == "wpe":
                last = "embeddings"
            elif last == "bias":
                tensor = tensor[None]
            layer = [f"h_._{words[2]}", *words[3:]] if words[1:2] == ["h"] else words[1:]
            file.create_dataset("/".join([words[0], "tfgp_t2lm_head_model", words[0], *layer, f"{last}:0"]), data=tensor)


def decoder_inputs(rows=4, length=13, seed=0):
    """Ids and mask (rows, length): one row padded on the right, one on the left, the others whole."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[0, 9:] = 0
    mask[1, :4] = 0
    return {"input_ids": rng.integers(3, 96, mask.shape).astype(np.int32), "attention_mask": mask}


def positions(mask):
    """Of the tokens, counted over the mask."""
    return np.maximum(mask.cumsum(1) - 1, 0)


def decoder_logits(model, params, batch):
    """Logits of every position, float32 (rows, length, vocabulary)."""
    return np.asarray(_logits(model, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
    module = model.bind(params)
    return module.vocabulary_logits(module.hidden_states(batch)[-1])
