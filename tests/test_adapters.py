"""Low-rank matrices: dropout, DoRA, 4-bit bases, and adapters as files, through the commands that train and use them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, random_params, tiny_config
from decoders import FAMILIES, decoder_inputs, write_decoder
from safetensors.numpy import load_file, save_file
from test_generate import write_tokenizer

from ftjax.cli import main
from ftjax.errors import InputError
from ftjax.models import CONFIGS, LORA, Lora, build, kernel_of, merge_lora, nf4, with_4bit, with_lora
from ftjax.models.layers import Dense
from ftjax.objectives.classification import Classification, class_logits
from ftjax.partition import count, label, split
from ftjax.pretrained import load_pretrained, merge, save_adapter
from ftjax.pretrained.load import add_lora, in_4bit
from ftjax.random import dropout, fold_in
from ftjax.step import kept_in

FLAGS = ("--max-length", "32", "--batch-size", "8", "--buckets", "1", "--epochs", "1", "--learning-rate", "1e-2", "--json")
QUERIES = tuple(f"encoder.layers.{i}.attention.{name}" for i in range(2) for name in ("query", "key", "value"))


def low_rank_dense(dora, rate=0.4):
    """A dense layer of 6 to 5 features with matrices of rank 2, all random."""
    dense, rng = Dense(6, 5, jnp.dtype("float32")), np.random.default_rng(0)
    dense.add_lora(2, 1.5, dropout=rate, dora=dora, seed=7)
    for name in ("kernel", "bias", "lora_a", "lora_b", *(["lora_magnitude"] if dora else [])):
        parameter = getattr(dense, name)
        parameter[...] = jnp.asarray(rng.standard_normal(parameter.shape), jnp.float32)
    return dense


@pytest.mark.parametrize("dora", [False, True])
def test_the_equations_by_hand_with_and_without_dropout(dora):
    dense = low_rank_dense(dora)
    w, b, low_a, low_b = (np.asarray(getattr(dense, name)[...]) for name in ("kernel", "bias", "lora_a", "lora_b"))
    x, seeds = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 6)), jnp.float32), jnp.arange(3, dtype=jnp.uint32)
    whole = w + 1.5 * low_a @ low_b
    gain = np.asarray(dense.lora_magnitude[...]) / np.linalg.norm(whole, axis=0) if dora else 1.0
    np.testing.assert_allclose(np.asarray(dense(x)), np.asarray(x) @ (gain * whole) + b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dense.weight()), gain * whole, rtol=1e-5, atol=1e-6)
    dropped = np.asarray(dropout(x, 0.4, fold_in(seeds, 7)))
    assert (dropped == 0).mean() == pytest.approx(0.4, abs=0.15)
    expected = np.asarray(x) @ w + (gain - 1.0) * (dropped @ w) + gain * 1.5 * (dropped @ low_a @ low_b) + b
    np.testing.assert_allclose(np.asarray(dense(x, seeds)), expected, rtol=1e-5, atol=1e-5)


def bert_with(lora, *, modules_in_4bit=(), **config):
    model = with_4bit(with_lora(build(tiny_config(**config), num_labels=2), lora), modules_in_4bit)
    return model, random_params(model)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("dora", [False, True])
def test_the_last_layer_for_one_token_equals_the_whole_one(dora, rate):
    lora = Lora(2, 4.0, (*QUERIES, "encoder.layers.1.mlp.up", "encoder.layers.1.attention.output"), rate, dora)
    model, params = bert_with(lora, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch, seeds = random_batch(), jnp.arange(8, dtype=jnp.uint32) if rate else None

    @jax.jit
    def run(params):
        module = model.bind(params)
        return [module.hidden_states(batch, seeds=seeds, readout=r)[-1][:, 0] for r in (False, True)]

    whole, single = map(np.asarray, run(params))
    np.testing.assert_allclose(single, whole, rtol=1e-4, atol=1e-5)


def test_magnitudes_scale_what_is_merged():
    model, params = bert_with(Lora(2, 4.0, QUERIES, 0.0, True), modules_in_4bit=QUERIES[:2])
    plain, merged = build(tiny_config(), num_labels=2), merge_lora(model, params)
    assert set(merged) == set(plain.shapes)
    logits, batch = jax.jit(class_logits, static_argnums=0), random_batch()
    found, expected = (np.asarray(logits(m, p, batch, None)) for m, p in ((plain, merged), (model, params)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_4_bits_keep_levels_exactly_and_everything_else_within_half_a_gap():
    rng = np.random.default_rng(0)
    scales = np.exp2(rng.integers(-4, 4, (2, 1, 5))).astype(np.float32)
    exact = nf4.LEVELS[rng.integers(0, 16, (2, 64, 5))]
    exact[:, 0] = 1.0  # the largest of its block
    kernel = (exact * scales).reshape(128, 5)
    codes, kept = nf4.quantize(jnp.asarray(kernel))
    assert (codes.shape, codes.dtype, kept.shape) == ((64, 5), jnp.uint8, (2, 5)) == (*_with_dtype(nf4.shapes_of(128, 5)),)
    np.testing.assert_array_equal(np.asarray(nf4.dequantize(codes, kept)), kernel)
    kernel = rng.standard_normal((96, 7)).astype(np.float32)
    kernel[:32, 0] = 0.0
    codes, kept = nf4.quantize(jnp.asarray(kernel))
    error = np.abs(np.asarray(nf4.dequantize(codes, kept)) - kernel).reshape(3, 32, 7) / np.maximum(kept, 1e-9)[:, None]
    assert error.max() <= np.diff(nf4.LEVELS).max() / 2 + 2**-8  # and the rounding of scales
    assert not np.asarray(nf4.dequantize(codes, kept))[:32, 0].any()
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(kept.astype(jnp.bfloat16).astype(jnp.float32)))
    with pytest.raises(InputError, match="not a multiple of 8"):
        nf4.check("a", 12)


def _with_dtype(shapes):
    return shapes[0], jnp.uint8, shapes[1]


def test_lora_on_a_4_bit_base_is_lora_on_what_it_stands_for_and_takes_its_bytes(tmp_path, tiny_bert):
    base = load_pretrained(tiny_bert, labels=("a", "b"))
    frozen = tuple(n.removesuffix(".kernel") for n in base.params if ".layers." in n and n.endswith(".kernel"))
    lora = Lora(2, 4.0, QUERIES, dora=True)
    small = add_lora(in_4bit(base, frozen), lora)
    rounded = dict(base.params) | {f"{n}.kernel": kernel_of(small.params, n) for n in frozen}
    large = add_lora(dataclasses.replace(base, params=rounded), lora)
    batch, results, sizes = random_batch(), [], []
    for made in (small, large):
        trainable, kept = split(made.params, label(made.params, "lora:2,head", layers=2))
        kept = {n: v.astype(kept_in(n, v, "bfloat16")) if n.endswith(nf4.ENDINGS) else v for n, v in kept.items()}

        def loss(trainable, frozen, model=made.model):
            return Classification(model)(frozen | trainable, batch, None)[0][0]

        program = jax.jit(jax.value_and_grad(loss)).lower(trainable, kept).compile()
        results.append(program(trainable, kept))
        sizes.append((program.memory_analysis().argument_size_in_bytes, count(kept)))
    (found, gradients), (expected, others) = results
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(np.asarray(gradient), np.asarray(others[name]), rtol=1e-4, atol=1e-6, err_msg=name)
    numbers = sum(small.model.in_4bit and base.params[f"{n}.kernel"].size for n in frozen)
    scales = sum(v.size for n, v in small.params.items() if n.endswith(nf4.SCALES))
    assert sizes[1][0] - sizes[0][0] == 4 * numbers - numbers // 2 - 2 * scales
    assert sizes[0][1] == sizes[1][1]  # parameters are counted, not bytes


def test_kernels_in_4_bits_are_not_all_there_at_once():
    base, temporaries = build(tiny_config(hidden_size=64, intermediate_size=256, num_hidden_layers=6), num_labels=2), []
    frozen = tuple(n.removesuffix(".kernel") for n in base.shapes if ".layers." in n and n.endswith(".kernel"))
    for modules in ((), frozen):
        model = with_lora(with_4bit(base, modules), Lora(2, 4.0, frozen[:3]))
        trainable, kept = split(model.shapes, label(model.shapes, "lora:2,head", layers=6))

        def loss(trainable, frozen, model=model):
            return Classification(model)(frozen | trainable, random_batch(rows=2), None)[0][0]

        program = jax.jit(jax.value_and_grad(loss)).lower(trainable, kept).compile()
        temporaries.append(program.memory_analysis().temp_size_in_bytes)
    whole = 4 * sum(base.shapes[f"{n}.kernel"].size for n in frozen)
    assert temporaries[1] - temporaries[0] < whole / 3


def test_a_loop_over_layers_gives_the_same_with_dropout_dora_and_4_bits():
    raw = FAMILIES["llama"]
    config, batch = CONFIGS["llama"].from_dict(raw, "config.json"), decoder_inputs() | {"labels": np.array([0, 1, 1, 0])}
    names = [f"decoder.layers.{i}.{part}" for i in range(3) for part in ("attention.value", "mlp.down")]
    found = []
    for scan in (False, True):
        model = with_4bit(build(config, num_labels=2, scan=scan, lora=Lora(2, 4.0, tuple(names), 0.3, True)), tuple(names))
        params = random_params(model, scale=0.2)
        loss = lambda p, m=model: Classification(m)(p, batch, jnp.arange(4, dtype=jnp.uint32))[0][0]  # noqa: E731
        found.append(float(jax.jit(loss)(params)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def command(capsys, *arguments):
    """(exit status, stdout, stderr) of the command in this process."""
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tiny_bert, few_reviews, tmp_path_factory):
    """A run on a copy of the tiny BERT whose model is an adapter: DoRA with dropout on a 4-bit base, a head and norms."""
    root = tmp_path_factory.mktemp("adapters")
    base, output = shutil.copytree(tiny_bert, root / "base"), root / "run"
    files = ("--train-file", few_reviews["train"], "--eval-file", few_reviews["eval"], "--output", output)
    how = ("--method", "partial", "--train-parameters", "lora:2,layernorm,head", "--lora-targets", r"attention\.\w+")
    more = ("--dora", "--lora-dropout", "0.1", "--base-bits", "4", "--export-format", "adapter")
    main([str(a) for a in ("train", "--model", base, *files, *how, *more, *FLAGS)])
    return base, output


def test_an_adapter_comes_out_of_training_and_goes_back_in(trained, few_reviews, tmp_path, capsys):
    base, run = trained
    assert {p.name for p in (run / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not (run / "model" / "config.json").exists()  # transformers would take it for a whole model
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_dora"]) == (2, 16.0, 0.1, True)
    assert config["target_modules"] == ["attention.output.dense", "key", "query", "value"]
    assert config["task_type"] == "SEQ_CLS"
    tensors = load_file(run / "model" / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in tensors
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert tensors[f"{name}.lora_A.weight"].shape == (2, 16)
    assert tensors[f"{name}.lora_magnitude_vector"].shape == (16,)

    result = json.loads((run / "result.json").read_text())
    ways = {
        "names its base": ("--model", run / "model"),
        "beside its base": ("--model", base, "--adapter", run / "model"),
    }
    losses = {}
    for way, model in ways.items():
        status, out, err = command(capsys, "evaluate", *model, "--file", few_reviews["eval"], "--json")
        assert status == 0, err
        losses[way] = json.loads(out)["loss"]
    assert losses["names its base"] == losses["beside its base"]
    # the run saw the base in 4 bits, which an adapter does not know; the whole model does
    assert losses["names its base"] == pytest.approx(result["eval"]["loss"], abs=0.05)
    arguments = ("export", "--checkpoint", run, "--output", tmp_path / "whole", "--export-format", "huggingface")
    assert command(capsys, *arguments)[0] == 0
    _, out, _ = command(capsys, "evaluate", "--model", tmp_path / "whole", "--file", few_reviews["eval"], "--json")
    assert json.loads(out)["loss"] == pytest.approx(result["eval"]["loss"], rel=1e-4)

    arguments = ("export", "--checkpoint", run, "--output", tmp_path / "served", "--export-format", "stablehlo")
    assert command(capsys, *arguments)[0] == 0
    whole, batch = load_pretrained(tmp_path / "whole"), random_batch()
    program = jax.export.deserialize(bytearray((tmp_path / "served" / "program.stablehlo").read_bytes()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    logits = program.call(dict(np.load(tmp_path / "served" / "params.npz")), inputs)
    expected = jax.jit(class_logits, static_argnums=0)(whole.model, whole.params, batch, None)
    np.testing.assert_allclose(np.asarray(logits), np.asarray(expected), atol=1e-5)

    arguments = ("export", "--model", base, "--adapter", run / "model", "--output", tmp_path / "merged")
    assert command(capsys, *arguments)[0] == 0
    merged, adapted = load_pretrained(tmp_path / "merged"), merge(load_pretrained(run / "model"))
    assert merged.labels == adapted.labels == ("fresh", "rotten")
    assert all(np.array_equal(np.asarray(merged.params[n]), np.asarray(v)) for n, v in adapted.params.items())


def test_an_adapter_trains_further_or_is_merged(trained, few_reviews, tmp_path, capsys):
    base, run = trained
    before = load_pretrained(run / "model").params
    files = ("--train-file", few_reviews["train"], *FLAGS, "--method", "partial", "--adapter", run / "model", "--model", base)
    more = ("--train-parameters", "lora:2", "--export-format", "adapter", "--learning-rate", "1e-7")
    status, _, err = command(capsys, "train", *files, *more, "--output", tmp_path / "on")
    assert status == 0, err
    after = load_pretrained(tmp_path / "on" / "model")
    assert after.labels == ("fresh", "rotten")
    for name, value in before.items():  # what trained before and now is frozen is in the adapter still
        np.testing.assert_allclose(np.asarray(after.params[name]), np.asarray(value), atol=2e-6, err_msg=name)
        assert np.array_equal(np.asarray(after.params[name]), np.asarray(value)) != name.endswith(LORA), name

    status, _, err = command(capsys, "train", *files, "--train-parameters", "head", "--output", tmp_path / "head")
    assert status == 0, err
    whole, merged = load_pretrained(tmp_path / "head" / "model").params, merge(load_pretrained(run / "model")).params
    changed = {name for name, value in merged.items() if not np.array_equal(np.asarray(whole[name]), np.asarray(value))}
    assert changed == {n for n in whole if n.startswith(("classifier.", "pooler."))}


@pytest.mark.parametrize(("kind", "task"), [("every-token", "TOKEN_CLS"), ("span", "QUESTION_ANS"), ("mean", "SEQ_CLS")])
def test_other_heads_go_into_an_adapter_and_come_out(kind, task, tiny_bert, tmp_path):
    labels = ("start", "end") if kind == "span" else ("x", "y", "z")
    made = add_lora(load_pretrained(tiny_bert, labels=labels, classifier=kind), Lora(2, 4.0, QUERIES))
    params = {n: v + 0.5 if n.endswith("lora_b") else v for n, v in made.params.items()}
    save_adapter(made, params, ["classifier.kernel", "classifier.bias"], tmp_path / "adapter", base=tiny_bert)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == (task, ["qa_outputs" if kind == "span" else "classifier"])
    again = load_pretrained(tmp_path / "adapter")
    assert (again.classifier, again.labels) == (kind, ("LABEL_0", "LABEL_1") if kind == "span" else labels)
    assert all(np.array_equal(np.asarray(again.params[n]), np.asarray(v)) for n, v in params.items())
    if kind != "mean":  # which transformers, and so PEFT, does not know
        (tmp_path / "adapter" / "config_changes.json").unlink()
        again = load_pretrained(tmp_path / "adapter")
        assert (again.classifier, again.labels[0]) == (kind, "LABEL_0")


def test_what_4_bits_save_is_shown(tiny_bert, capsys):
    found = {}
    for bits in ((), ("--base-bits", "4")):
        arguments = ("parameters", "--model", tiny_bert, "--train-parameters", "lora:2", "--dora", *bits, "--json")
        status, out, err = command(capsys, *arguments)
        assert status == 0, err
        found[bits] = json.loads(out)["memory"][0]
    plain, small = found.values()
    assert plain["frozen_parameters"] == small["frozen_parameters"]
    numbers, blocks = 2 * (4 * 16 * 16 + 2 * 16 * 32), 2 * (4 * 16 + 32 + 16)  # of 16 numbers, and of 32 in mlp.down
    assert plain["parameters_bytes"] - small["parameters_bytes"] == 4 * numbers - numbers // 2 - 4 * blocks


def test_a_decoder_continues_text_with_an_adapter(tmp_path, capsys):
    write_decoder(tmp_path / "base", FAMILIES["gpt2"])
    write_tokenizer(tmp_path / "base")
    base = load_pretrained(tmp_path / "base", causal_lm=True)
    modules = ("decoder.layers.0.attention.query", "decoder.layers.0.attention.value", "decoder.layers.1.mlp.up")
    made = add_lora(base, Lora(2, 4.0, modules))
    params = {n: v + 0.5 if n.endswith("lora_b") else v for n, v in made.params.items()}
    save_adapter(made, params, [], tmp_path / "adapter", base=tmp_path / "base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    joined = "transformer.h.0.attn.c_attn"  # query and value in one tensor: the rank is the sum of theirs
    assert (config["r"], config["rank_pattern"]) == (4, {"transformer.h.1.mlp.c_fc": 2})
    assert config["target_modules"] == ["0.attn.c_attn", "1.mlp.c_fc"] and config["fan_in_fan_out"]
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")[f"base_model.model.{joined}.lora_B.weight"].shape == (
        96,
        4,
    )
    texts = {}
    for name, model in {
        "base": ("base",),
        "adapter": ("adapter",),
        "both": ("base", "--adapter", tmp_path / "adapter"),
    }.items():
        arguments = ("--model", tmp_path / model[0], *model[1:], "--prompt", "abc", "--max-new-tokens", "8", "--json")
        status, out, err = command(capsys, "generate", *arguments)
        assert status == 0, err
        texts[name] = json.loads(out)["token_ids"]
    assert texts["adapter"] == texts["both"] != texts["base"]


def test_adapters_that_do_not_fit_are_refused_in_one_line(trained, tiny_bert, tmp_path, capsys):
    base, run = trained
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    tensors = load_file(run / "model" / "adapter_model.safetensors")
    query = "base_model.model.bert.encoder.layer.0.attention.self.query"

    def refused(*words, adapter=None, model=base, changes=None, drop=(), extra=None):
        directory = tmp_path / "bad"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(run / "model", directory)
        (directory / "adapter_config.json").write_text(json.dumps(config | (changes or {})))
        kept = {n: v for n, v in tensors.items() if n not in drop} | (extra or {})
        save_file(kept, directory / "adapter_model.safetensors")
        status, out, err = command(capsys, "predict", "--model", model, "--adapter", adapter or directory, "good")
        assert (status, out) == (2, ""), err
        assert err.count("\n") == 1
        for word in words:
            assert word in err, err

    refused("no adapter; expected adapter_config.json", adapter=base)
    refused(f"made for the base model {base}, not for", f"give --model {base}", model=tiny_bert)
    write_decoder(tmp_path / "base", FAMILIES["llama"])  # of the same name
    refused("belongs to a bert, not to a llama", "another base model", model=tmp_path / "base")
    wide = {f"{query}.lora_A.weight": np.zeros((2, 24), np.float32)}
    refused("bert.encoder.layer.0.attention.self.query are [2, 24] and [16, 2]", "kernel of [16, 16]", extra=wide)
    deep = {n.replace("layer.0", "layer.7"): v for n, v in tensors.items() if n.startswith(query)}
    refused("matrices for bert.encoder.layer.7.attention.self.query, which this model has not", extra=deep)
    norm = "base_model.model.bert.encoder.layer.0.output.LayerNorm.weight"
    refused("LayerNorm.weight is [24], here [16]", extra={norm: np.zeros(24, np.float32)})
    refused("has bert.adapter.weight, which this model has not", extra={"base_model.model.bert.adapter.weight": tensors[norm]})
    refused("lacks one of its matrices", drop=(f"{query}.lora_B.weight",))
    refused("lacks one of its matrices, or has a magnitude too many", changes={"use_dora": False})
    refused("is not a tensor of an adapter", extra={"classifier.weight": tensors[norm]})
    embedding = {"base_model.model.bert.embeddings.word_embeddings.lora_embedding_A": tensors[norm]}
    refused("only matrices beside dense layers", extra=embedding)
    refused("of type 'IA3' is not supported", changes={"peft_type": "IA3"})
    refused("lora_bias=True is not supported", changes={"lora_bias": True})
    refused("init_lora_weights='pissa' changes the base model", changes={"init_lora_weights": "pissa"})
    refused("r is 0, not a positive number", changes={"r": 0})
    refused("lora_dropout is 2", changes={"lora_dropout": 2})
    refused("regular expression '.*query'", changes={"alpha_pattern": {".*query": 3}})
    (tmp_path / "bad" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    status, _, err = command(capsys, "predict", "--model", tmp_path / "bad", "good")
    assert status == 2 and "names no base model" in err


MISTAKES = {
    "dora without lora": (("--train-parameters", "head", "--dora"), "--dora: needs low-rank matrices"),
    "dropout without lora": (("--train-parameters", "head", "--lora-dropout", "0.1"), "--lora-dropout 0.1: needs"),
    "a dropout of 1": (("--train-parameters", "lora:2", "--lora-dropout", "1"), "--lora-dropout 1.0: must be"),
    "an adapter without lora": (("--train-parameters", "head", "--export-format", "adapter"), "needs low-rank matrices"),
    "an adapter with embeddings": (
        ("--train-parameters", "lora:2,embeddings", "--export-format", "adapter"),
        "holds no embeddings",
    ),
    "an adapter with a bias": (("--train-parameters", "lora:2,bias", "--export-format", "adapter"), "trains beside low-rank"),
    "nothing to round": (("--train-parameters", "attention,mlp", "--base-bits", "4"), "--base-bits 4: every kernel"),
    "a full run": (("--method", "full", "--base-bits", "4"), "--base-bits needs --method partial"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_anything_is_written(name, tiny_bert, few_reviews, tmp_path, capsys):
    flags, words = MISTAKES[name]
    files = ("--model", tiny_bert, "--train-file", few_reviews["train"], "--output", tmp_path / "run")
    status, out, err = command(capsys, "train", *files, "--method", "partial", *FLAGS, *flags)
    assert (status, out) == (2, ""), err
    assert words in err
    assert not (tmp_path / "run").exists()


def test_another_rank_beside_an_adapter_is_refused(trained, few_reviews, tmp_path, capsys):
    base, run = trained
    files = ("--model", base, "--adapter", run / "model", "--train-file", few_reviews["train"], "--output", tmp_path / "run")
    status, _, err = command(capsys, "train", *files, "--method", "partial", "--train-parameters", "lora:4", *FLAGS)
    assert status == 2 and "lora:4 beside an adapter of rank 2; go on with it by lora:2" in err
