"""T5: PyTorch's golden values, decoding token by token, tied and own output matrices, padding, the objective."""

import dataclasses
import json

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from safetensors.numpy import load_file, save_file

from ftjax.cli import main
from ftjax.errors import InputError
from ftjax.generate import Sampling, generate
from ftjax.models import Lora, build
from ftjax.models.t5 import T5Config, shift_right
from ftjax.objectives import Term
from ftjax.objectives.seq2seq import Seq2Seq, seq2seq_logits
from ftjax.optimizer import adamw
from ftjax.partition import label, split
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.load import add_lora
from ftjax.step import create_state, train_step

KINDS = [kind for kind in families.golden_shapes() if kind.startswith("t5")]


@pytest.fixture(scope="module", params=KINDS)
def t5(request, tmp_path_factory):
    """(kind, loaded) of each version."""
    directory = tmp_path_factory.mktemp("t5")
    families.write_golden(directory, request.param)
    return request.param, load_pretrained(directory)


def seq2seq_batch():
    return families.inputs() | {"labels": families.targets(), "example_ids": np.arange(5, dtype=np.int32)}


def everything(loaded, batch):
    """(logits, encoder's hidden states, decoder's), compiled."""

    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        encoder = module.encode(batch["input_ids"], batch["attention_mask"])
        shifted = shift_right(batch["labels"], loaded.model.config)
        decoder = module.decode(shifted, encoder[-1], batch["attention_mask"])
        return module.vocabulary_logits(decoder[-1]), encoder, decoder

    return run(loaded.params)


def test_logits_and_hidden_states_equal_pytorchs_golden_values(t5):
    kind, loaded = t5
    assert loaded.new == ()
    batch = seq2seq_batch()
    logits, encoder, decoder = everything(loaded, batch)
    golden = np.load(families.GOLDEN / "families.npz")
    for ours, theirs in zip(encoder, golden[f"{kind}/encoder"], strict=True):
        assert families.differ(families.few(ours), theirs, batch["attention_mask"]) <= 2e-5
    for ours, theirs in zip(decoder, golden[f"{kind}/decoder"], strict=True):
        assert families.differ(families.few(ours), theirs) <= 2e-5
    assert families.differ(families.few(logits), golden[f"{kind}/logits"]) <= 2e-5


def test_token_by_token_gives_the_logits_of_all_at_once(t5):
    _, loaded = t5
    batch = seq2seq_batch()
    expected = np.asarray(everything(loaded, batch)[0])
    shifted = shift_right(jnp.asarray(batch["labels"]), loaded.model.config)

    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        encoded = module.encode(batch["input_ids"], batch["attention_mask"])[-1]
        cache = module.start(encoded, batch["attention_mask"], 12)  # longer than needed: what is free must not be seen

        def step(cache, tokens):
            logits, cache = module.step(tokens, cache)
            return cache, logits

        return jax.lax.scan(step, cache, shifted.T)

    cache, logits = run(loaded.params)
    assert int(cache.position) == shifted.shape[1]
    assert families.differ(np.asarray(logits).transpose(1, 0, 2), expected) <= 1e-5


def sources(batch):
    """The tokens of each row, without padding."""
    return [ids[mask > 0].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_generated_texts_are_the_likeliest_tokens_and_end_where_they_should(t5):
    _, loaded = t5
    batch = families.inputs()
    batch["attention_mask"][2] = 1  # a prompt has no gap
    found = np.array(generate(loaded.model, loaded.params, sources(batch), Sampling(max_new_tokens=9), batch_size=2))
    logits = np.asarray(everything(loaded, batch | {"labels": found.astype(np.int32)})[0])
    assert np.array_equal(found, logits.argmax(-1))
    stop = int(found[0, 4])
    cut = generate(loaded.model, loaded.params, sources(batch)[:1], Sampling(max_new_tokens=9, stop=(stop,)))
    assert cut == [found[0, : found[0].tolist().index(stop)].tolist()]


def test_padding_on_either_side_of_the_source_and_behind_the_target_changes_nothing(t5):
    """Only distances count, so a source may start anywhere."""
    _, loaded = t5
    ids = np.random.default_rng(0).integers(2, families.VOCAB, (3, 8)).astype(np.int32)
    mask, pad, labels = np.ones_like(ids), np.zeros((3, 5), np.int32), families.targets()[2:5]
    more = np.pad(labels, ((0, 0), (0, 3)), constant_values=-100)
    batches = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels},
        {"input_ids": np.hstack([ids, pad]), "attention_mask": np.hstack([mask, pad]), "labels": more},
        {"input_ids": np.hstack([pad, ids]), "attention_mask": np.hstack([pad, mask]), "labels": more},
    ]
    expected, *others = (np.asarray(everything(loaded, batch)[0])[:, :9] for batch in batches)
    seen = (labels >= 0).astype(np.int32)
    for other in others:
        assert families.differ(other, expected, seen) <= 1e-5


def test_an_untouched_model_is_exported_bit_for_bit_and_a_trained_one_loads_again(t5, tmp_path):
    kind, loaded = t5
    tensors = load_file(loaded.directory / "model.safetensors")
    save_pretrained(loaded, loaded.params, tmp_path / "same", trained=False)
    again = load_file(tmp_path / "same" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(again[n].tobytes() == t.tobytes() for n, t in tensors.items())
    changed = {name: value * 1.5 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "trained")
    back = load_pretrained(tmp_path / "trained")
    assert back.model == loaded.model
    assert all(np.array_equal(np.asarray(back.params[n]), np.asarray(v)) for n, v in changed.items())
    assert ("lm_head.kernel" in loaded.params) == ("own" in kind)


def rewrite(directory, config=None, drop=(), **tensors):
    old = load_file(directory / "model.safetensors")
    save_file({n: t for n, t in {**old, **tensors}.items() if n not in drop}, directory / "model.safetensors")
    if config:
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | config))


def expect(directory, *words, **options):
    with pytest.raises(InputError) as caught:
        load_pretrained(directory, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_the_output_matrix_is_tied_or_not_as_the_files_and_both_versions_configs_say(tmp_path):
    tied, own = KINDS
    families.write_golden(tmp_path / "tied", tied)
    shared = families.values("shared.weight", families.golden_shapes()[tied][1]["shared.weight"])
    copies = {name: shared for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}
    rewrite(tmp_path / "tied", **copies)
    loaded = load_pretrained(tmp_path / "tied")
    assert set(loaded.carried) == set(copies)
    assert "lm_head.kernel" not in loaded.params
    assert loaded.model.config.scales_output
    save_pretrained(loaded, loaded.params, tmp_path / "same", trained=False)
    assert set(load_file(tmp_path / "same" / "model.safetensors")) == set(load_file(tmp_path / "tied" / "model.safetensors"))

    rewrite(tmp_path / "tied", drop=("shared.weight",))  # as encoders alone are saved
    again = load_pretrained(tmp_path / "tied")
    assert again.spelled["encoder.embeddings.word.embedding"] == "encoder.embed_tokens.weight"
    word = again.params["encoder.embeddings.word.embedding"]
    assert np.array_equal(np.asarray(word), shared)
    rewrite(tmp_path / "tied", **{"lm_head.weight": 2 * shared})
    expect(tmp_path / "tied", "lm_head.weight differs from encoder.embed_tokens.weight", "tied")

    families.write_golden(tmp_path / "own", own)
    raw = json.loads((tmp_path / "own" / "config.json").read_text())
    assert (raw["tie_word_embeddings"], raw["scale_decoder_outputs"]) == (True, False)  # as transformers 5 writes it
    five = load_pretrained(tmp_path / "own")
    rewrite(tmp_path / "own", {"tie_word_embeddings": False, "scale_decoder_outputs": None})  # as 4 does
    four = load_pretrained(tmp_path / "own")
    for loaded in (five, four):
        assert "lm_head.kernel" in loaded.params
        assert not loaded.model.config.scales_output
    rewrite(tmp_path / "own", drop=("lm_head.weight",))
    without = load_pretrained(tmp_path / "own")
    assert "lm_head.kernel" not in without.params
    assert not without.model.config.scales_output


def test_what_would_change_the_result_unnoticed_is_refused(tmp_path):
    for change, words in (
        ({"feed_forward_proj": "gated-swish2"}, ("feed_forward_proj", "gated-swish2")),
        ({"feed_forward_proj": "gelu-gated"}, ("feed_forward_proj", "gelu-gated")),
        ({"feed_forward_proj": "gated-relu"}, ("is_gated_act",)),
        ({"feed_forward_proj": "silu"}, ("dense_act_fn",)),
        ({"is_encoder_decoder": False}, ("is_encoder_decoder",)),
        ({"relative_attention_num_buckets": 2}, ("relative_attention_num_buckets",)),
        ({"d_model": 0}, ("positive",)),
        ({"d_kv": "8"}, ("d_kv is '8'",)),
        ({"num_decoder_layers": 2}, ("unexpected weights",)),
        ({"num_decoder_layers": 4}, ("missing weights", "decoder.block.3")),
    ):
        families.write_golden(tmp_path, KINDS[0])
        rewrite(tmp_path, {"dense_act_fn": "relu", "is_gated_act": False, **change})
        expect(tmp_path, *words)
    families.write_golden(tmp_path, KINDS[0])
    expect(tmp_path, "t5 has no classification head; it has none", labels=("a", "b"))
    expect(tmp_path, "t5 has no head for masked language modelling", masked_lm=True)
    expect(tmp_path, "t5 has no head for the next token", causal_lm=True)


def test_presets_and_lora_reach_both_parts(t5):
    _, loaded = t5
    names = list(loaded.model.shapes)

    def chosen(spec):
        labels = label(names, spec, layers=2)
        return [name for name in names if labels[name] == "trained"]

    assert {name.rpartition(".layers.1.")[0] for name in chosen("last:1")} == {"encoder", "decoder"}
    assert {name.split(".")[0] for name in chosen("attention")} == {"encoder", "decoder"}
    assert len(chosen("layernorm")) == 2 * 2 + 1 + 3 * 3 + 1
    assert len(chosen("embeddings")) == 3
    model = loaded.model.freeze(chosen("regex:decoder.layers.*"))
    assert model.frozen == (True,) * 3 + (True,) + (False,) * 3
    with_lora = add_lora(loaded, Lora(2, 4.0, ("encoder.layers.0.attention.query", "decoder.layers.2.cross_attention.value")))
    assert len(set(with_lora.params) - set(loaded.params)) == 4


@pytest.fixture(scope="module")
def small():
    """(model, parameters) of one layer each, gated, with an output matrix of its own."""
    sizes = {"vocab_size": families.VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_size": 8}
    model = build(T5Config(**sizes, intermediate_size=24, feed_forward_proj="gated-gelu", own_lm_head=True))
    return model, random_params(model, scale=0.3)


def test_dropout_is_off_in_what_is_frozen(small):
    model, params = small
    batch, seeds = seq2seq_batch(), np.arange(5, dtype=np.uint32)

    def run(frozen, seeds):
        return np.asarray(jax.jit(lambda p: seq2seq_logits(dataclasses.replace(model, frozen=frozen), p, batch, seeds))(params))

    plain = run((), None)
    assert families.differ(run((), seeds), plain) > 1e-2
    assert families.differ(run((True, True, False, False), seeds), plain) > 1e-2
    assert families.differ(run((True,) * 4, seeds), plain) <= 1e-5


def test_the_objective_counts_each_token_once_and_training_brings_it_down(small):
    model, params = small
    batch = seq2seq_batch()
    labels = batch["labels"]
    logits = np.asarray(jax.jit(lambda p: seq2seq_logits(model, p, batch))(params), np.float64)
    surprise = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    trained = label(params, "all", layers=1)
    optimizer = adamw(split(params, trained)[0], learning_rate=1e-2)
    state = create_state(params, trained, (Term("seq2seq", 1.0, Seq2Seq(model)),), optimizer, microbatches=5)
    step = jax.jit(train_step, donate_argnums=0)
    losses = []
    for number in range(12):
        state, metrics = step(state, batch)
        total, weight = metrics["seq2seq_loss"]
        assert float(weight) == float(metrics["token_accuracy"][1]) == (labels >= 0).sum() == 4 + 1 + 3 * 9
        losses.append(float(total / weight))
        assert number or abs(losses[0] - surprise[labels >= 0].mean()) < 1.0  # dropout is on
    assert losses[-1] < losses[0] - 0.4, losses
    moved = {n for n, v in state.trainable.items() if not np.array_equal(np.asarray(v), np.asarray(params[n]))}
    assert moved == set(params)
    (total, weight), metrics = Seq2Seq(model)(params, batch, None)
    np.testing.assert_allclose(float(total), surprise[labels >= 0].sum(), rtol=1e-5)
    assert float(metrics["token_accuracy"][0]) == (logits.argmax(-1) == labels).sum()


def test_a_decoder_reads_what_stands_before_each_token():
    labels = jnp.asarray([[5, 6, 1], [7, 1, -100]])
    config = T5Config(pad_token_id=0, decoder_start_token_id=3)
    assert shift_right(labels, config).tolist() == [[3, 5, 6], [3, 7, 1]]
    assert shift_right(labels, T5Config(pad_token_id=2)).tolist() == [[2, 5, 6], [2, 7, 1]]


def test_bfloat16_keeps_the_cache_in_bfloat16_and_the_logits_close(small):
    model, params = small
    batch = seq2seq_batch()

    def run(model):
        @jax.jit
        def first(params):
            module = model.bind(params)
            encoded = module.encode(batch["input_ids"], batch["attention_mask"])[-1]
            return module.step(jnp.zeros(5, jnp.int32), module.start(encoded, batch["attention_mask"], 4))

        return first(params)

    plain, _ = run(model)
    logits, cache = run(build(model.config, precision="bfloat16"))
    assert (logits.dtype, cache.keys.dtype, cache.cross_keys.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert families.differ(logits, np.asarray(plain)) <= 0.03


VARIANTS = {
    "t5 1.0": {"feed_forward_proj": "relu"},
    "flan": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": None},
    "gated silu, wide heads": {"feed_forward_proj": "gated-silu", "d_kv": 16, "num_layers": 1},
    "usual buckets, long": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
}


@pytest.mark.parity
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_random_models_equal_pytorchs_both_ways(name, untied, tmp_path):
    import torch
    import transformers
    from torch_reference import torch_seq2seq

    torch.manual_seed(0)
    made = transformers.T5ForConditionalGeneration
    config = {**families.T5_SIZES, **VARIANTS[name], **({"tie_word_embeddings": False} if untied else {})}
    theirs = made(transformers.T5Config(**config))
    if untied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn_like(theirs.lm_head.weight))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    length = 300 if "long" in name else 17
    batch = families.inputs(length=length) | {"labels": families.targets(length=150 if "long" in name else 9)}
    loaded = load_pretrained(tmp_path / "theirs")
    assert loaded.new == ()
    assert ("lm_head.kernel" in loaded.params) == untied
    expected, *expected_states = torch_seq2seq(theirs, batch, batch["labels"])
    logits, *states = everything(loaded, batch)
    for ours, wanted, mask in zip(states, expected_states, (batch["attention_mask"], None), strict=True):
        for state, other in zip(ours, wanted, strict=True):
            assert families.differ(state, other, mask) <= 2e-5
    assert families.differ(logits, expected) <= 2e-5

    changed = {n: value * 1.01 for n, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    back, notes = made.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(notes.values()), notes
    again = everything(load_pretrained(tmp_path / "ours"), batch)[0]
    assert families.differ(again, torch_seq2seq(back, batch, batch["labels"])[0]) <= 2e-5


@pytest.mark.parity
def test_greedy_decoding_with_the_cache_gives_pytorchs_tokens(tmp_path):
    import torch
    import transformers

    for kind in KINDS:
        config, shapes = families.golden_shapes()[kind]
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("decoder.block.2.")}
        families.write(tmp_path, config | {"num_decoder_layers": 2}, shapes)  # its cache has as many layers as the encoder
        model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
        batch = families.inputs()
        batch["attention_mask"][2] = 1  # a prompt has no gap
        inputs = {k: torch.tensor(batch[k]).long() for k in ("input_ids", "attention_mask")}
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None).numpy()
        loaded = load_pretrained(tmp_path)
        found = generate(loaded.model, loaded.params, sources(batch), Sampling(max_new_tokens=12), batch_size=3)
        assert np.array_equal(np.array(found), expected[:, 1:])


@pytest.mark.parametrize("command", ["train", "zero-shot"])
def test_commands_refuse_it_in_one_line(command, t5, tmp_path, capsys):
    directory = str(t5[1].directory)
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,1\n")
    train = ("train", "--train-file", str(tmp_path / "a.csv"), "--output", str(tmp_path / "run"))
    arguments = {"train": train, "zero-shot": ("zero-shot", "a", "--labels", "x,y")}[command]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--model", directory])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "an encoder and a decoder" in said[-1] and not (tmp_path / "run").exists()
