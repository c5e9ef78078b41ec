"""Hugging Face directories in and out: names, shards, damage, round trips, golden hidden states."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import tiny_config
from safetensors.numpy import load_file, save_file
from torch_reference import minilm_inputs

from ftjax.errors import InputError
from ftjax.models import build
from ftjax.models.bert import NAMES as BERT
from ftjax.pretrained import load_pretrained, save_pretrained

GOLDEN = Path(__file__).parent / "golden" / "minilm.npz"


def write_model(directory, *, prefix="bert.", labels=None, old_names=False, dtype=np.float32, pooler=True, extra=(), **config):
    """A tiny BERT directory as Hugging Face writes it; returns its tensors."""
    model = build(tiny_config(**config), num_labels=len(labels) if labels else None, pooler=pooler, precision="float32")
    rng = np.random.default_rng(0)
    tensors = {}
    for ours, shape in model.shapes.items():
        theirs, transposed = BERT.theirs(ours)
        if old_names:
            theirs = theirs.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if not prefix:
            theirs = theirs.removeprefix("bert.")
        tensors[theirs] = rng.standard_normal(shape.shape[::-1] if transposed else shape.shape).astype(dtype)
    tensors |= {name: rng.standard_normal((2, 2)).astype(np.float32) for name in extra}
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    raw = {"model_type": "bert", **dataclasses.asdict(tiny_config(**config))}
    if labels:
        raw |= {"id2label": dict(enumerate(labels)), "architectures": ["BertForSequenceClassification"]}
    (directory / "config.json").write_text(json.dumps(raw))
    return tensors


def same_bytes(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_hidden_states_of_minilm_equal_pytorchs_golden_values(minilm):
    loaded = load_pretrained(minilm)
    assert loaded.new == ()
    assert list(loaded.carried) == ["embeddings.position_ids"]
    inputs = minilm_inputs()

    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        hidden = module.hidden_states(inputs)
        return hidden, module.pool(hidden[-1][:, 0])

    hidden, pooled = run(loaded.params)
    golden = np.load(GOLDEN)
    seen = inputs["attention_mask"][:, ::4, None] > 0
    for number, state in enumerate(hidden):
        difference = (np.asarray(state)[:, ::4, ::16] - golden[f"arr_{number}"]) * seen
        assert np.abs(difference).max() <= 1e-5 * golden["scale"][number], number
    assert np.abs(np.asarray(pooled)[:, ::8] - golden["pooled"]).max() <= 1e-5


def test_an_untouched_model_is_exported_bit_for_bit(minilm, tmp_path):
    loaded = load_pretrained(minilm)
    save_pretrained(loaded, loaded.params, tmp_path, trained=False)
    same_bytes(load_file(minilm / "model.safetensors"), load_file(tmp_path / "model.safetensors"))
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("labels", [("no", "yes"), None])
def test_round_trip_of_every_spelling(tmp_path, dtype, prefix, labels):
    tensors = write_model(tmp_path / "in", dtype=dtype, prefix=prefix, labels=labels, extra=["cls.seq_relationship.weight"])
    loaded = load_pretrained(tmp_path / "in")
    assert loaded.labels == (labels or ())
    assert all(value.dtype == np.float32 for value in loaded.params.values())
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    same_bytes(tensors, load_file(tmp_path / "out" / "model.safetensors"))


def test_prefix_old_names_and_shards_make_no_difference(tmp_path):
    tensors = write_model(tmp_path / "plain")
    write_model(tmp_path / "bare", prefix="")
    write_model(tmp_path / "old", old_names=True)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(tmp_path / "plain" / "config.json", sharded)
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    plain = load_pretrained(tmp_path / "plain").params
    for other in ("bare", "old", "sharded"):
        for name, value in load_pretrained(tmp_path / other).params.items():
            assert np.array_equal(np.asarray(value), np.asarray(plain[name])), (other, name)


def test_a_new_head_is_initialised_named_and_the_same_for_the_same_seed(minilm):
    first, again, other = (load_pretrained(minilm, labels=("a", "b"), masked_lm=True, seed=s) for s in (0, 0, 1))
    assert {name.split(".")[0] for name in first.new} == {"classifier", "masked_lm"}
    kernel = np.asarray(first.params["classifier.kernel"])
    assert abs(kernel.std() - 0.02) < 0.002
    assert np.array_equal(kernel, np.asarray(again.params["classifier.kernel"]))
    assert not np.array_equal(kernel, np.asarray(other.params["classifier.kernel"]))


def test_a_classifier_with_other_labels_is_left_aside(tmp_path):
    write_model(tmp_path, labels=("no", "yes"))
    assert load_pretrained(tmp_path).new == ()
    assert load_pretrained(tmp_path, labels=("no", "yes")).new == ()
    assert set(load_pretrained(tmp_path, labels=("a", "b", "c")).new) == {"classifier.kernel", "classifier.bias"}
    assert set(load_pretrained(tmp_path, classifier="first-token").new) == {"classifier.kernel", "classifier.bias"}


def test_classes_without_names_are_numbered(tmp_path):
    write_model(tmp_path, labels=("LABEL_0", "LABEL_1"))
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["id2label"]  # as transformers writes it for two classes without names
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_pretrained(tmp_path).labels == ("LABEL_0", "LABEL_1")
    assert load_pretrained(tmp_path, labels=("0", "1")).new == ()
    assert set(load_pretrained(tmp_path, labels=("no", "yes")).new) == {"classifier.kernel", "classifier.bias"}


@pytest.mark.parametrize("classifier", ["pooled", "first-token"])
def test_a_trained_model_comes_back_with_its_labels_and_head(minilm, tmp_path, classifier):
    loaded = load_pretrained(minilm, labels=("bad", "good"), classifier=classifier, masked_lm=True)
    save_pretrained(loaded, loaded.params, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.labels == ("bad", "good")
    assert again.classifier == classifier
    assert again.new == ()
    assert set(again.params) == {n for n in loaded.params if not n.startswith("masked_lm.")}
    for name, value in again.params.items():
        assert np.array_equal(np.asarray(value), np.asarray(loaded.params[name])), name


def expect(directory, *words, **options):
    with pytest.raises(InputError) as caught:
        load_pretrained(directory, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_unexpected_misshapen_and_missing_weights_are_named(tmp_path):
    tensors = write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(tensors | {"bert.encoder.layer.0.adapter.weight": np.zeros((2, 2), np.float32)}, file)
    expect(tmp_path, "unexpected weights", "bert.encoder.layer.0.adapter.weight")
    save_file(tensors | {"bert.encoder.layer.1.output.dense.bias": np.zeros(3, np.float32)}, file)
    expect(tmp_path, "bert.encoder.layer.1.output.dense.bias", "[3]", "[16]")
    save_file({n: v for n, v in tensors.items() if n != "bert.encoder.layer.0.attention.self.key.weight"}, file)
    expect(tmp_path, "missing weights", "bert.encoder.layer.0.attention.self.key.weight")
    save_file(tensors | {"bert.encoder.layer.1.output.dense.bias": np.zeros(16, np.int32)}, file)
    expect(tmp_path, "int32", "bert.encoder.layer.1.output.dense.bias")


def test_damaged_and_dangerous_directories_are_refused(tmp_path):
    expect(tmp_path / "nowhere" / "a" / "b", "no such model directory")
    expect(tmp_path, "no config.json")
    write_model(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, raw = file.read_bytes(), json.loads(config.read_text())
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", struct.pack("<Q", 2**60) + whole[8:], b"\x80\x04pickle" + whole):
        file.write_bytes(damaged)
        expect(tmp_path, "model.safetensors", "truncated or corrupt")
    file.unlink()
    expect(tmp_path, "no weights")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    expect(tmp_path, "pytorch_model.bin", "refused", "save_pretrained")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    expect(tmp_path, "../secret.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    expect(tmp_path, "model-00001-of-00002.safetensors", "missing")
    index.write_text("{")
    expect(tmp_path, "not valid JSON")
    index.unlink()
    file.write_bytes(whole)
    for change, word in (
        ({"model_type": "gptj"}, "supported are: bert"),
        ({"hidden_act": "swish2"}, "swish2"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_size": "16"}, "not a number"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": 0}, "positive"),
    ):
        config.write_text(json.dumps(raw | change))
        expect(tmp_path, word)
    config.write_text("[]")
    expect(tmp_path, "not a JSON object")
    config.write_bytes(b"\xff\xfe")
    expect(tmp_path, "not valid JSON")
