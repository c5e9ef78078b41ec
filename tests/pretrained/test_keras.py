"""Keras weights (tf_model.h5): files in the layout of transformers 4's TensorFlow classes load as safetensors do."""

import json
import sys

import families
import numpy as np
import pytest
from decoders import FAMILIES, write_decoder, write_keras_gpt2
from safetensors.numpy import load_file

from ftjax.errors import InputError
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.keras import pytorch_name

KINDS = list(families.golden_shapes())


def keras_name(name, architecture):
    """PyTorch's name of a weight as (group of the file, Keras' own name)."""
    model = {"T5ForConditionalGeneration": "tf_t5for_conditional_generation"}.get(architecture, f"tf_{architecture.lower()}")
    *words, last = name.split(".")
    words = _join(words)
    if last == "weight":
        if words[-1] in ("word_embeddings", "shared"):
            last = "weight"
        elif words[-1].endswith("_embeddings") or words[-1] == "relative_attention_bias":
            last = "embeddings"
        elif "norm" in words[-1].lower():
            last = "weight" if architecture.startswith("T5") else "gamma"
        else:
            last = "kernel"
    elif "norm" in words[-1].lower():
        last = "beta"
    top = words[0]
    if top == "cls":
        top = words[0] = "mlm___cls"
    elif top == "shared":
        return top, "shared/shared/weight:0"
    return top, "/".join([model, *words, f"{last}:0"])


def _join(words):
    """`layer`, `0` to `layer_._0`, as Keras names the members of a list."""
    joined = []
    for word in words:
        if word.isdigit():
            joined[-1] += f"_._{word}"
        else:
            joined.append(word)
    return joined


def write_h5(directory, kind, *, by_head=False):
    """A family's directory with tf_model.h5 instead of safetensors; returns the tensors as PyTorch has them."""
    h5py = pytest.importorskip("h5py")
    tensors = families.write_golden(directory, kind)
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    groups = {}
    with h5py.File(directory / "tf_model.h5", "w") as file:
        for name, tensor in tensors.items():
            group, own = keras_name(name, config["architectures"][0])
            value = tensor.T if own.endswith("/kernel:0") else tensor
            if by_head and "/attention/" in own and "LayerNorm" not in own:
                value = split_heads(value, own, config["num_attention_heads"])
            file.require_group(group).create_dataset(own, data=value)
            groups.setdefault(group, []).append(own.encode())
        for group, names in groups.items():
            file[group].attrs["weight_names"] = names
        file.create_group("dropout_37").attrs["weight_names"] = []
        file.attrs["layer_names"] = [*(group.encode() for group in groups), b"dropout_37"]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.10.0"
    return tensors


def split_heads(value, own, heads):
    if own.endswith("output/dense/kernel:0"):
        return value.reshape(heads, -1, value.shape[1])
    if own.endswith("output/dense/bias:0"):
        return value
    return value.reshape(*value.shape[:-1], heads, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_keras_file_loads_as_safetensors_do(kind, tmp_path):
    masked_lm = kind.endswith("MaskedLM")
    tensors = write_h5(tmp_path / "keras", kind)
    families.write_golden(tmp_path / "plain", kind)
    loaded, plain = (load_pretrained(tmp_path / name, masked_lm=masked_lm) for name in ("keras", "plain"))
    assert loaded.new == loaded.carried == ()
    assert loaded.labels == plain.labels
    assert all(np.array_equal(np.asarray(loaded.params[n]), np.asarray(v)) for n, v in plain.params.items())
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())


def test_kernels_by_head_are_read_as_one(tmp_path):
    kind = f"bert {families.HEADS[0]}"
    write_h5(tmp_path / "heads", kind, by_head=True)
    families.write_golden(tmp_path / "plain", kind)
    loaded, plain = (load_pretrained(tmp_path / name) for name in ("heads", "plain"))
    assert all(np.array_equal(np.asarray(loaded.params[n]), np.asarray(v)) for n, v in plain.params.items())


@pytest.mark.parametrize("heads", [{}, {"labels": ("no", "yes"), "causal_lm": False}])
def test_a_gpt2_of_keras_loads_as_safetensors_do(heads, tmp_path):
    write_keras_gpt2(tmp_path / "keras", **heads)
    write_decoder(tmp_path / "plain", FAMILIES["gpt2"], **heads)
    loaded, plain = (load_pretrained(tmp_path / name, causal_lm=not heads) for name in ("keras", "plain"))
    assert loaded.new == loaded.carried == ()
    assert all(np.array_equal(np.asarray(loaded.params[n]), np.asarray(v)) for n, v in plain.params.items())


def test_names_of_published_files():
    for path, expected in (
        ("bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0", "bert.encoder.layer.0.output.dense.weight"),
        ("bert/tf_bert_model/bert/embeddings/word_embeddings/weight:0", "bert.embeddings.word_embeddings.weight"),
        ("bert/tf_bert_model/bert/embeddings/LayerNorm/beta:0", "bert.embeddings.LayerNorm.bias"),
        ("mlm___cls/tf_bert_for_pre_training/mlm___cls/predictions/bias:0", "cls.predictions.bias"),
        ("shared/shared/shared/weight:0", "shared.weight"),
        ("transformer/tfgp_t2lm_head_model/transformer/h_._11/attn/c_attn/weight:0", "transformer.h.11.attn.c_attn.weight"),
        ("transformer/tfgp_t2lm_head_model/transformer/wpe/embeddings:0", "transformer.wpe.weight"),
        ("encoder/tf_t5model/encoder/final_layer_norm/weight:0", "encoder.final_layer_norm.weight"),
        ("top", ""),
    ):
        assert pytorch_name(path) == expected


def expect(directory, *words):
    with pytest.raises(InputError) as caught:
        load_pretrained(directory)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_without_h5py_the_mend_is_named(tmp_path, monkeypatch):
    families.write_golden(tmp_path, KINDS[0])
    (tmp_path / "model.safetensors").rename(tmp_path / "tf_model.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    expect(tmp_path, "tf_model.h5", "h5py", "pip install 'ftjax[h5]'")
    (tmp_path / "tf_model.h5").rename(tmp_path / "tf_model.h5.index.json")
    expect(tmp_path, "several files")


def test_damaged_and_dangerous_files_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_h5(tmp_path, KINDS[0])
    path = tmp_path / "tf_model.h5"
    whole = path.read_bytes()
    word = "bert/tf_bertforsequenceclassification/bert/embeddings/word_embeddings/weight:0"
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4 * 90 * 24)

    def changed(change):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            assert word in file
            del file[word]
            change(file)

    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"\x80\x04pickle"):
        path.write_bytes(damaged)
        expect(tmp_path, "tf_model.h5", "truncated or corrupt")
    outside = str(tmp_path / "secret.bin")
    changed(lambda file: file.create_dataset(word, (90, 24), "f4", external=[(outside, 0, 4 * 90 * 24)]))
    expect(tmp_path, "lies in another file", "word_embeddings")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros((90, 24), np.float32)
    layout = h5py.VirtualLayout((90, 24), "f4")
    layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (90, 24))
    changed(lambda file: file.create_virtual_dataset(word, layout))
    expect(tmp_path, "lies in another file")

    def link(file):
        file[word] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")

    changed(link)
    expect(tmp_path, "missing weights", "word_embeddings")  # the link is not followed
    changed(lambda file: file.create_dataset(word, (10**6, 10**6), "f4", chunks=(1000, 1000)))  # 4 TB that nobody wrote
    expect(tmp_path, "declares", "1000000")
    changed(lambda file: file.create_dataset(word, data=np.zeros((91, 24), np.float32)))
    expect(tmp_path, "wrongly shaped", "[91, 24]")
    changed(lambda file: file.create_dataset("x:0", data=np.zeros(3, np.float32)))
    expect(tmp_path, "x:0 is not a weight")
    changed(lambda file: file.create_dataset("bert/tf_bert/bert/adapter/kernel:0", data=np.zeros((3, 3), np.float32)))
    expect(tmp_path, "unexpected weights", "bert.adapter.weight")
