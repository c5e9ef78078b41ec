"""Decoders: golden logits of every family, directories in and out, padding, packing, scan, and what is refused."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import random_params
from decoders import FAMILIES, SMALL, decoder_inputs, decoder_logits, positions, write_decoder
from safetensors.numpy import load_file, save_file
from test_pretrained import expect, same_bytes

from ftjax.models import CONFIGS, build, rope
from ftjax.models import FAMILIES as ARCHITECTURES
from ftjax.models.rope import Rope, rotate
from ftjax.objectives.classification import Classification, class_logits
from ftjax.partition import label, treat
from ftjax.prefix import prefix_step
from ftjax.pretrained import load_pretrained, save_pretrained

GOLDEN = Path(__file__).parent / "golden" / "decoders.npz"


def tiny(name, **options):
    """(model, random parameters) of a family."""
    raw = FAMILIES[name]
    model = build(CONFIGS[raw["model_type"]].from_dict(raw, "config.json"), **options)
    return model, random_params(model, scale=0.2)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_that_are_built_alike_are_equal_so_that_programs_are_shared(name):
    one, other = (tiny(name, causal_lm=True)[0] for _ in range(2))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_pytorchs_golden_values_and_files_come_back_bit_for_bit(name, tmp_path):
    tensors = write_decoder(tmp_path / "in", FAMILIES[name])
    loaded = load_pretrained(tmp_path / "in", causal_lm=True)
    assert loaded.new == ()
    assert loaded.carried == ()
    inputs = decoder_inputs()
    found = decoder_logits(loaded.model, loaded.params, inputs)
    golden = np.load(GOLDEN)[name]
    seen = inputs["attention_mask"][..., None] > 0
    assert np.abs((found[..., ::7] - golden) * seen).max() <= 1e-4
    assert np.abs(golden).max() > 0.5
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    same_bytes(tensors, load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("labels", [("no", "yes"), None])
@pytest.mark.parametrize("name", ["gpt2", "llama 3"])
def test_round_trips_of_base_models_and_classifiers(name, labels, dtype, tmp_path):
    options = {"labels": labels, "causal_lm": False, "prefixed": bool(labels), "dtype": dtype}
    tensors = write_decoder(tmp_path / "in", FAMILIES[name], **options)
    loaded = load_pretrained(tmp_path / "in")
    assert loaded.labels == (labels or ())
    assert loaded.classifier == "last-token"
    assert loaded.new == ()
    assert "classifier.bias" not in loaded.params
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    same_bytes(tensors, load_file(tmp_path / "out" / "model.safetensors"))


def test_a_gpt2_export_that_changed_in_one_part_of_a_joined_matrix_loses_nothing(tmp_path):
    write_decoder(tmp_path / "in", FAMILIES["gpt2"], dtype=ml_dtypes.bfloat16)
    loaded = load_pretrained(tmp_path / "in", labels=("no", "yes"))
    params = {n: v * 1.001 if "attention.query" in n or n.startswith("classifier") else v for n, v in loaded.params.items()}
    save_pretrained(loaded, params, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.labels == ("no", "yes")
    assert again.new == ()
    for name, value in again.params.items():
        assert np.array_equal(np.asarray(value), np.asarray(params[name])), name
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    assert tensors["transformer.h.0.attn.c_attn.weight"].dtype == np.float32
    assert tensors["transformer.h.0.attn.c_proj.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_padding_on_either_side_changes_nothing(name):
    model, params = tiny(name, causal_lm=True)
    ids = np.random.default_rng(1).integers(3, 96, (1, 9)).astype(np.int32)
    plain = decoder_logits(model, params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    for left, right in ((0, 4), (4, 0), (2, 2)):
        around = ((0, 0), (left, right))
        batch = {"input_ids": np.pad(ids, around, constant_values=7), "attention_mask": np.pad(np.ones_like(ids), around)}
        found = decoder_logits(model, params, batch)[:, left : left + 9]
        assert np.abs(found - plain).max() <= 1e-5, (left, right)


@pytest.mark.parametrize("name", ["gpt2", "llama 3", "gemma3"])
def test_the_classifier_reads_the_last_token_and_the_last_layer_computes_no_more(name):
    model, params = tiny(name, num_labels=3)
    batch = decoder_inputs()
    logits, hidden = jax.jit(
        lambda params: (class_logits(model, params, batch, None), model.bind(params).hidden_states(batch)[-1])
    )(params)
    expected = np.asarray(hidden)[np.arange(4), [8, 12, 12, 12]] @ np.asarray(params["classifier.kernel"])
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-5
    text = jax.jit(lambda params: class_logits(model, params, batch, None)).lower(params).as_text()
    assert "4x1x48xf32" in text or "4x1x128xf32" in text  # the MLP of one position


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma3"])
def test_documents_in_a_packed_row_do_not_see_each_other(name):
    model, params = tiny(name, causal_lm=True)
    rng = np.random.default_rng(0)
    parts = [rng.integers(3, 96, (1, n)).astype(np.int32) for n in (6, 5, 4)]
    packed = np.concatenate([*parts, np.zeros((1, 2), np.int32)], axis=1)
    segments = np.repeat([[1, 2, 3, 0]], [6, 5, 4, 2], axis=1).astype(np.int32)
    found = decoder_logits(model, params, {"input_ids": packed, "segment_ids": segments})
    start = 0
    for part in parts:
        alone = decoder_logits(model, params, {"input_ids": part, "attention_mask": np.ones_like(part)})
        assert np.abs(found[:, start : start + part.shape[1]] - alone).max() <= 1e-5
        start += part.shape[1]
    changed = packed.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 96
    again = decoder_logits(model, params, {"input_ids": changed, "segment_ids": segments})
    assert np.array_equal(again[:, :7], found[:, :7])  # the first document and what comes before the change
    assert np.array_equal(again[:, 11:15], found[:, 11:15])  # the third
    assert not np.array_equal(again[:, 7:11], found[:, 7:11])
    one_row = decoder_logits(model, params, {"input_ids": packed, "attention_mask": (segments > 0).astype(np.int32)})
    assert np.abs(one_row[:, 6:15] - found[:, 6:15]).max() > 1e-2  # without segments they do


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma3"])
@pytest.mark.parametrize("trained", ["all", "last:1,head"])
def test_layers_in_a_scan_give_the_same_losses_and_gradients(name, trained):
    batch = decoder_inputs() | {"labels": np.array([0, 1, 1, 0], np.int32)}
    seeds = jnp.arange(4, dtype=jnp.uint32)
    results = []
    for scan in (False, True):
        model, params = tiny(name, num_labels=2, scan=scan)
        model = dataclasses.replace(model, config=model.config.with_dropout(0.1))
        model = build(model.config, **dict(model.heads))
        labels = label(params, trained, layers=model.config.num_hidden_layers)
        train = {n: v for n, v in params.items() if labels[n] == "trained"}
        objective = Classification(model.freeze(train))

        def loss(train, params=params, objective=objective):
            (total, weight), _ = objective({**params, **train}, batch, seeds)
            return total / weight

        results.append(jax.jit(jax.value_and_grad(loss))(train))
    (plain, gradients), (scanned, others) = results
    assert abs(float(plain) - float(scanned)) <= 1e-6
    assert gradients.keys() == others.keys()
    for n, gradient in gradients.items():
        assert np.abs(np.asarray(gradient) - np.asarray(others[n])).max() <= 1e-5, n


def test_a_scanned_program_does_not_grow_with_depth():
    sizes = []
    for layers in (4, 12):
        raw = SMALL | {"model_type": "llama", "num_hidden_layers": layers}
        model = build(CONFIGS["llama"].from_dict(raw, "config.json"), num_labels=2, scan=True)
        batch = decoder_inputs() | {"labels": np.zeros(4, np.int32)}
        loss = functools.partial(lambda model, batch, params: Classification(model)(params, batch, None)[0][0], model, batch)
        text = jax.jit(jax.grad(loss)).lower(model.shapes).as_text()
        sizes.append(text.count("dot_general"))
    assert sizes[0] == sizes[1]


def test_presets_name_what_they_should():
    names = {name: set(tiny(name, num_labels=2, causal_lm=True)[0].shapes) for name in ("gpt2", "llama", "gemma3", "llama 3")}

    def trained(family, spec):
        return {n for n, kind in label(names[family], spec, layers=2).items() if kind == "trained"}

    assert trained("llama", "head") == {"classifier.kernel"}
    assert trained("llama 3", "head") == {"classifier.kernel", "lm_head.kernel"}
    assert trained("gpt2", "embeddings") == {"decoder.embeddings.word.embedding", "decoder.embeddings.position.embedding"}
    assert trained("gpt2", "last:1") == {n for n in names["gpt2"] if n.startswith("decoder.layers.1.")}
    assert trained("gemma3", "layernorm") == {n for n in names["gemma3"] if n.endswith(".scale")}
    assert "decoder.norm.bias" in trained("gpt2", "layernorm")
    assert trained("gpt2", "bias") == {n for n in names["gpt2"] if n.endswith(".bias")}
    assert {n.split(".", 4)[-1] for n in trained("gemma3", "attention")} == {
        "key.kernel", "key_norm.scale", "output.kernel", "query.kernel", "query_norm.scale", "value.kernel"
    }  # fmt: skip
    assert {n.split(".", 4)[-1] for n in trained("llama", "mlp")} == {"down.kernel", "gate.kernel", "up.kernel"}


def test_layerwise_decay_counts_from_the_head():
    names = tiny("gpt2", num_labels=2)[0].shapes
    found = treat(names, "all", layers=2, layer_decay=0.5)
    assert found["decoder.norm.scale"].learning_rate == found["classifier.kernel"].learning_rate == 1.0
    assert found["decoder.layers.0.mlp.up.kernel"].learning_rate == 0.25
    assert found["decoder.embeddings.word.embedding"].learning_rate == 0.125


@pytest.mark.parametrize("scan", [False, True])
def test_what_frozen_layers_give_may_stand_for_the_tokens(scan):
    model, params = tiny("gemma2", num_labels=2, scan=scan)
    batch = decoder_inputs()
    run = jax.jit(lambda model, params, batch: class_logits(model, params, batch, None), static_argnums=0)
    expected = np.asarray(run(model, params, batch))
    for spec in ("last:1,head", "head"):
        frozen = model.freeze([n for n, kind in label(params, spec, layers=3).items() if kind == "trained"])
        stop = frozen.prefix_layers
        prefix = jax.jit(prefix_step(frozen))(params, batch)
        rest = {"prefix": prefix} | ({} if stop == 3 else {"attention_mask": batch["attention_mask"]})
        assert np.abs(np.asarray(run(frozen, params, rest)) - expected).max() <= 1e-5, spec


@pytest.mark.parametrize("size", [32, 64])
def test_halves_swapped_by_a_product_turn_as_they_do_apart_and_gradients_turn_back(size):
    x, gradient = jax.random.normal(jax.random.key(0), (2, 2, 16, 3, size)).astype(jnp.bfloat16)
    rotation = Rope().rotation(jnp.broadcast_to(jnp.arange(16), (2, 16)), size)
    angles = tuple(part[:, :, None] for part in rotation)
    halves = functools.partial(rope._by_halves, cos=angles[0], sin=angles[1])
    np.testing.assert_array_equal(rope._by_product(x, *angles), halves(x))  # what TPUs take
    for dtype in (jnp.float32, jnp.bfloat16):
        (apart, back), (turned, turned_back) = (jax.vjp(f, x.astype(dtype)) for f in (halves, lambda x: rotate(x, rotation)))
        np.testing.assert_array_equal(turned, apart)
        np.testing.assert_array_equal(turned_back(gradient.astype(dtype))[0], back(gradient.astype(dtype))[0])


def test_rope_of_llama_3_keeps_fast_pairs_and_slows_the_others():
    plain, scaled = Rope(), Rope.from_dict({"rope_scaling": {**LLAMA_31, "rope_theta": 10000.0}}, "here")
    ratio = scaled.frequencies(64) / plain.frequencies(64)
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(1 / 8)
    assert (np.diff(ratio) <= 1e-6).all() and ((ratio > 0.13) & (ratio < 0.99)).any()


LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["'yarn'", "not supported"]),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'"]),
    ("llama", {"rope_scaling": {"type": "linear"}}, ["'linear' needs factor"]),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -1}}, ["factor is -1"]),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}}, ["mrope_section"]),
    ("llama", {"rope_scaling": "linear"}, ["not a dictionary"]),
    ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ("llama", {"hidden_act": "xielu"}, ["unknown activation 'xielu'"]),
    ("llama", {"num_key_value_heads": 3}, ["not a multiple of num_key_value_heads"]),
    ("llama", {"head_dim": 7}, ["must be even"]),
    ("llama", {"num_hidden_layers": 10**9}, ["1000000000 layers"]),
    ("llama", {"attention_bias": "yes"}, ["attention_bias is 'yes'"]),
    ("llama", {"num_local_experts": 8}, ["num_local_experts=8"]),
    ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ("llama", {"model_type": "mixtral"}, ["'mixtral' is not supported"]),
    ("mistral", {"sliding_window": 0}, ["sliding_window is 0"]),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, ["layer_types"]),
    ("mistral", {"attention_bias": True}, ["attention_bias=True"]),
    ("qwen2", {"mlp_bias": True}, ["mlp_bias=True"]),
    ("qwen3", {"layer_types": ["full_attention"]}, ["layer_types must name", "each of the 3 layers"]),
    ("qwen3", {"rope_parameters": {"rope_type": "longrope"}}, ["'longrope'"]),
    ("qwen3", {"num_experts": 8}, ["num_experts=8"]),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx=True"]),
    ("gpt2", {"add_cross_attention": True}, ["add_cross_attention=True"]),
    ("gpt2", {"n_embd": "32"}, ["not a number"]),
    ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
    ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
    ("gemma3", {"rope_parameters": {"rope_theta": 1.0}}, ["full_attention"]),
]
"""Families, what their config.json says, and words of the line that refuses it."""


def test_every_family_refuses_something():
    assert {FAMILIES[family]["model_type"] for family, _, _ in REFUSED} == {
        config.model_type for config in ARCHITECTURES if config.causal
    }


@pytest.mark.parametrize(("family", "change", "words"), REFUSED)
def test_what_would_change_the_result_unnoticed_is_refused(family, change, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family] | change))
    expect(tmp_path, *words)


def test_weights_that_do_not_belong_are_named(tmp_path):
    tensors = write_decoder(tmp_path, FAMILIES["gpt2"])
    file = tmp_path / "model.safetensors"
    save_file(tensors | {"transformer.h.0.attn.c_attn.weight": np.zeros((32, 95), np.float32)}, file)
    expect(tmp_path, "transformer.h.0.attn.c_attn.weight", "not 3 matrices")
    save_file({n: v for n, v in tensors.items() if n != "transformer.h.0.attn.c_attn.bias"}, file)
    expect(tmp_path, "missing weights: transformer.h.0.attn.c_attn.bias")
    save_file(tensors | {"transformer.h.0.crossattention.bias": np.zeros(3, np.float32)}, file)
    expect(tmp_path, "unexpected weights: transformer.h.0.crossattention.bias")
    expect(write_and_return(tmp_path / "b"), "llama has no pooled classification head", "last-token", classifier="pooled")


def test_an_output_matrix_that_should_be_the_word_embeddings_must_be_them(tmp_path):
    tensors = write_decoder(tmp_path, FAMILIES["llama"])  # tied
    file, word = tmp_path / "model.safetensors", tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": word}, file)
    loaded = load_pretrained(tmp_path, causal_lm=True)
    assert (loaded.new, loaded.carried) == ((), ("lm_head.weight",))
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    same_bytes(load_file(file), load_file(tmp_path / "out" / "model.safetensors"))
    save_file(tensors | {"lm_head.weight": 2 * word}, file)
    expect(tmp_path, "lm_head.weight differs from model.embed_tokens.weight", causal_lm=True)
    assert load_pretrained(tmp_path, labels=("a", "b")).carried  # a classifier does not mind

    write_decoder(tmp_path / "own", FAMILIES["llama, linear"])
    tensors = load_file(tmp_path / "own" / "model.safetensors")
    assert not np.array_equal(tensors["lm_head.weight"], tensors.pop("model.embed_tokens.weight"))
    save_file(tensors, tmp_path / "own" / "model.safetensors")
    expect(tmp_path / "own", "missing weights: model.embed_tokens.weight")  # never read from a matrix of its own


def test_every_family_says_which_heads_it_has(tmp_path):
    for name, raw in FAMILIES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(raw))
        family = raw["model_type"]
        expect(tmp_path / name, f"{family} has no head for masked language modelling", "take causal-lm", masked_lm=True)
        for classifier in ("pooled", "first-token"):
            expect(tmp_path / name, f"{family} has no {classifier} classification head", "last-token", classifier=classifier)


def write_and_return(directory):
    write_decoder(directory, FAMILIES["llama"])
    return directory


def test_positions_come_from_the_mask_the_segments_or_the_batch():
    from ftjax.models.decoder import token_positions

    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    assert np.array_equal(np.asarray(token_positions({"attention_mask": mask})), positions(mask))
    segments = np.array([[1, 1, 2, 2, 2, 3, 0, 0]], np.int32)
    assert np.asarray(token_positions({"segment_ids": segments})).tolist()[0][:6] == [0, 1, 0, 1, 2, 0]
    given = np.array([[4, 5]], np.int32)
    assert token_positions({"segment_ids": np.ones((1, 2), np.int32), "positions": given}) is given
