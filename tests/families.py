"""Small random models of every family as transformers writes them: what the golden values, made by PyTorch, were made of.

Weights are a function of their name and shape alone, so a test without PyTorch can write the very files that PyTorch read.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden"
VOCAB = 90

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
}
ENCODERS = {
    "bert": ("Bert", {**SIZES, "pad_token_id": 0}),
    "roberta": ("Roberta", {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": VOCAB,
            "dim": 24,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 40,
            "max_position_embeddings": 48,
            "pad_token_id": 0,
        },
    ),
    "electra": ("Electra", {**SIZES, "embedding_size": 16, "pad_token_id": 0}),
    "mpnet": ("MPNet", {**SIZES, "layer_norm_eps": 1e-5, "pad_token_id": 1}),
}
"""model_type -> (what transformers' class names begin with, config.json)."""
T5_SIZES = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
T5S = {
    "relu, tied": {**T5_SIZES, "feed_forward_proj": "relu"},
    "gated-gelu, own output": {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
HEADS = ("ForSequenceClassification", "ForMaskedLM")
LABELS = ("a", "b", "c")


def values(name, shape):
    """The weight of this name: random numbers of a generator that numpy has frozen."""
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    scale = name.endswith("weight") and "norm" in name.lower()
    return (1 + 0.1 * random if scale else 0.3 * random).astype(np.float32)


def write(directory, config, shapes, *, dtype=np.float32):
    """A model directory with these tensors (name -> shape); returns them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: values(name, shape).astype(dtype) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return tensors


def golden_shapes():
    """kind -> (config, tensors' shapes by name), where a kind is such as "roberta ForMaskedLM" or "t5 relu, tied"."""
    return {kind: tuple(value) for kind, value in json.loads((GOLDEN / "families.json").read_text()).items()}


def write_golden(directory, kind, **options):
    """The directory of a kind; returns its tensors."""
    return write(directory, *golden_shapes()[kind], **options)


def inputs(pad=0, types=2, rows=5, length=17, vocab=VOCAB, seed=0):
    """A batch padded on the right, on the left, not at all, and once within the row by the mask alone."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[0, 11:] = 0
    mask[1, :6] = 0
    ids = rng.integers(2, vocab, mask.shape).astype(np.int32)
    ids[mask == 0] = pad
    mask[2, 5] = 0  # a token that is not to be seen; positions that are counted by ids do count it
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, types, mask.shape).astype(np.int32),
    }


def targets(rows=5, length=9, vocab=VOCAB, seed=1):
    """Labels of a sequence-to-sequence batch, of several lengths: -100 after the end."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, vocab, (rows, length)).astype(np.int32)
    labels[0, 4:] = -100
    labels[3, 1:] = -100
    return labels


def few(array):
    """Every third feature or token of the vocabulary, all classes: enough to catch any mistake, small enough to commit."""
    array = np.asarray(array)
    return array if array.shape[-1] == len(LABELS) else array[..., ::3]


def differ(ours, theirs, mask=None):
    """The largest difference, relative to the largest value; only where the mask is 1."""
    seen = 1 if mask is None else (mask > 0).reshape(*mask.shape, *(1,) * (np.ndim(theirs) - mask.ndim))
    return np.abs((np.asarray(ours) - theirs) * seen).max() / np.abs(theirs).max()
