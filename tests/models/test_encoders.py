"""Every encoder family: PyTorch's golden values, readout, padding, presets, refusals, and PyTorch itself where it is there."""

import json

import families
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_reference import inputs_for

from ftjax.errors import InputError
from ftjax.models import Lora
from ftjax.models.layers import FEW, chosen
from ftjax.partition import label
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.load import add_lora

KINDS = [kind for kind in families.golden_shapes() if not kind.startswith("t5")]
CLASSIFIERS = [kind for kind in KINDS if kind.endswith(families.HEADS[0])]


def load(directory, kind, **options):
    families.write_golden(directory, kind)
    return load_pretrained(directory, masked_lm=kind.endswith("MaskedLM"), **options)


def batch_of(kind):
    """With token types always, as batches have them: who knows none must not read them."""
    model_type = kind.split()[0]
    config = families.ENCODERS[model_type][1]
    return families.inputs(config["pad_token_id"], 2) | inputs_for(model_type, config)


def outputs(loaded, batch):
    """(logits, all hidden states), compiled."""

    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        states = module.hidden_states(batch)
        return (module.classify if loaded.labels else module.vocabulary_logits)(states[-1]), states

    return run(loaded.params)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_hidden_states_equal_pytorchs_golden_values(kind, tmp_path):
    loaded, batch = load(tmp_path, kind), batch_of(kind)
    assert loaded.new == ()
    assert loaded.labels == (families.LABELS if kind in CLASSIFIERS else ())
    logits, states = outputs(loaded, batch)
    golden = np.load(families.GOLDEN / "families.npz")
    mask = batch["attention_mask"]
    for ours, theirs in zip(states, golden[f"{kind}/states"], strict=True):
        assert families.differ(families.few(ours), theirs, mask) <= 1e-5
    assert families.differ(families.few(logits), golden[f"{kind}/logits"], None if loaded.labels else mask) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_untouched_model_is_exported_bit_for_bit(kind, dtype, tmp_path):
    tensors = families.write_golden(tmp_path / "in", kind, dtype=dtype)
    loaded = load_pretrained(tmp_path / "in")
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(again[n].dtype == t.dtype and again[n].tobytes() == t.tobytes() for n, t in tensors.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == families.golden_shapes()[kind][0]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_base_models_bare_names_are_read_and_a_trained_head_comes_back(kind, tmp_path):
    config, shapes = families.golden_shapes()[kind]
    model_type = kind.split()[0]
    prefix = {"xlm-roberta": "roberta"}.get(model_type, model_type) + "."
    base = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    families.write(tmp_path / "base", {k: v for k, v in config.items() if k not in ("id2label", "label2id")}, base)
    loaded = load_pretrained(tmp_path / "base", labels=("no", "yes"))
    body = {name for name in loaded.params if name.startswith("encoder.")}
    assert body == set(loaded.spelled) - {"pooler.kernel", "pooler.bias"}
    save_pretrained(loaded, loaded.params, tmp_path / "trained")
    again = load_pretrained(tmp_path / "trained")
    assert (again.labels, again.new, again.carried) == (("no", "yes"), (), ())
    assert all(np.array_equal(np.asarray(again.params[n]), np.asarray(v)) for n, v in loaded.params.items())
    saved = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert saved["architectures"] == [families.ENCODERS[model_type][0] + families.HEADS[0]]
    assert set(load_file(tmp_path / "trained" / "model.safetensors")) == set(shapes)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_first_tokens_output_and_a_frozen_prefix_give_the_same_logits(kind, tmp_path):
    loaded, batch = load(tmp_path, kind), batch_of(kind)

    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        states = module.hidden_states(batch)
        model = loaded.model.freeze(label_names(loaded, "last:1,head"))
        assert model.prefix_layers == 1
        rest = {"prefix": states[1], "attention_mask": batch["attention_mask"]}
        return (
            module.classify(states[-1]),
            module.classify(module.hidden_states(batch, readout=True)[-1]),
            module.classify(model.bind(params).hidden_states(rest, frozen=model.frozen, readout=True)[-1]),
        )

    whole, readout, prefix = run(loaded.params)
    assert families.differ(readout, np.asarray(whole)) <= 1e-5
    assert families.differ(prefix, np.asarray(whole)) <= 1e-5


def label_names(loaded, spec):
    labels = label(loaded.model.shapes, spec, layers=loaded.model.config.num_hidden_layers)
    return [name for name, value in labels.items() if value == "trained"]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_presets_and_lora_find_their_parameters(kind, tmp_path):
    loaded = load(tmp_path, kind)
    assert {n.split(".")[0] for n in label_names(loaded, "head")} == {"pooler", "classifier"}
    last = label_names(loaded, "last:1")
    assert len(last) == 16
    assert all(name.startswith("encoder.layers.1.") for name in last)
    assert len(label_names(loaded, "attention")) == len(label_names(loaded, "mlp")) * 2 == 16
    assert len(label_names(loaded, "layernorm")) == 2 * (1 + 2 * 2)
    embeddings = {name.split(".")[2] for name in label_names(loaded, "embeddings")}
    own = {"electra": {"token_type", "projection"}, "mpnet": {"relative_attention_bias"}, "distilbert": set()}
    assert embeddings == {"word", "position", "norm"} | own.get(kind.split()[0], {"token_type"})
    with_lora = add_lora(loaded, Lora(2, 4.0, ("encoder.layers.0.attention.query", "encoder.layers.1.mlp.down")))
    assert len(set(with_lora.params) - set(loaded.params)) == 4


@pytest.mark.parametrize("kind", [kind for kind in CLASSIFIERS if "roberta" in kind or "mpnet" in kind])
def test_positions_counted_from_padding_do_not_see_on_which_side_it_is(kind, tmp_path):
    loaded = load(tmp_path, kind)
    ids = np.random.default_rng(0).integers(2, families.VOCAB, (3, 8)).astype(np.int32)
    pad, mask = np.full((3, 4), 1, np.int32), np.ones((3, 8), np.int32)
    found = []
    for order in ([ids, pad], [pad, ids]):
        masks = [mask if part is ids else 0 * pad for part in order]
        batch = {"input_ids": np.hstack(order), "attention_mask": np.hstack(masks), "token_type_ids": np.hstack(order) * 0}
        state = loaded.model.bind(loaded.params).hidden_states(batch)[-1]
        found.append(np.asarray(state)[:, :8] if order[0] is ids else np.asarray(state)[:, 4:])
    assert families.differ(found[0], found[1]) <= 1e-5


def test_positions_that_padding_takes_are_not_there_for_tokens(tmp_path):
    found = {kind.split()[0]: load(tmp_path / kind, kind).model.config.max_length for kind in CLASSIFIERS}
    assert found == {"bert": 48, "roberta": 46, "xlm-roberta": 46, "distilbert": 48, "electra": 48, "mpnet": 46}


def test_dropout_is_where_each_family_has_it(tmp_path):
    """A rate that drops next to nothing but is not 0 marks the places: their number is that of PyTorch's modules."""
    from ftjax.models import build

    places = {"bert": 1 + 2 * 3, "roberta": 1 + 2 * 3, "electra": 1 + 2 * 3, "mpnet": 1 + 2 * 3, "distilbert": 1 + 2 * 2}
    heads = {"bert": 1, "roberta": 2, "electra": 2, "mpnet": 2, "distilbert": 1}
    for model_type, expected in places.items():
        loaded = load(tmp_path / model_type, f"{model_type} {families.HEADS[0]}")
        batch, seeds = batch_of(model_type), np.arange(5, dtype=np.uint32)

        def run(params, config, batch=batch, seeds=seeds):
            module = build(config, num_labels=3).bind(params)
            return module.classify(module.hidden_states(batch, seeds=seeds)[-1], seeds=seeds)

        def selects(rate, loaded=loaded, run=run):
            config = loaded.model.config.with_dropout(rate)
            return str(jax.make_jaxpr(lambda params: run(params, config))(loaded.params)).count("name=_where")

        assert selects(0.5) - selects(0.0) == expected + heads[model_type], model_type


def expect(directory, *words, **options):
    with pytest.raises(InputError) as caught:
        load_pretrained(directory, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_what_would_change_the_result_unnoticed_is_refused(tmp_path):
    for kind in CLASSIFIERS:
        config, shapes = families.golden_shapes()[kind]
        directory, model_type = tmp_path / kind, kind.split()[0]
        act = "activation" if model_type == "distilbert" else "hidden_act"
        changes = [
            ({act: "swish2"}, ("unknown activation", "swish2")),
            ({act: ["gelu"]}, (f"{act} is ['gelu'], not a text",)),
            ({"max_position_embeddings": -1}, ("max_position_embeddings must be positive",)),
            ({"is_decoder": True}, ("is_decoder",)),
            ({"position_embedding_type": "relative_key"}, ("relative_key",)),
            ({"pruned_heads": {"0": [1]}}, ("pruned_heads",)),
        ]
        changes += {
            "mpnet": [({"relative_attention_num_buckets": 16}, ("relative_attention_num_buckets", "only 32"))],
            "bert": [({"type_vocab_size": -1}, ("type_vocab_size must not be negative",))],
            "roberta": [({"pad_token_id": None}, ("pad_token_id",))],
            "electra": [({"embedding_size": 0}, ("embedding_size",)), ({"embedding_size": 20}, ("wrongly shaped",))],
            "distilbert": [({"dim": "x"}, ("dim is 'x'",))],
        }.get(model_type, [])
        for change, words in changes:
            families.write(directory, config | change, shapes)
            expect(directory, model_type if words[0] == "is_decoder" else "", *words)
    families.write_golden(tmp_path, f"electra {families.HEADS[0]}")
    expect(tmp_path, "electra", "no head for masked language modelling", masked_lm=True)
    families.write_golden(tmp_path, "roberta ForMaskedLM")
    expect(tmp_path, "roberta has no head for the next token", "take masked-lm", causal_lm=True)
    expect(tmp_path, "roberta", "last-token", "it has pooled or first-token", labels=("a", "b"), classifier="last-token")


def test_a_language_models_copy_of_the_word_embeddings_must_be_one(tmp_path):
    kind = "roberta ForMaskedLM"
    config, shapes = families.golden_shapes()[kind]
    word = "roberta.embeddings.word_embeddings.weight"
    assert "lm_head.decoder.weight" not in shapes
    families.write(tmp_path, config, {**shapes, "lm_head.decoder.weight": shapes[word]})  # other random numbers
    assert load_pretrained(tmp_path, labels=("a", "b")).carried  # a classifier does not mind
    expect(tmp_path, "lm_head.decoder.weight differs", "tied", masked_lm=True)
    families.write(tmp_path, config | {"tie_word_embeddings": False}, shapes)
    expect(tmp_path, "tie_word_embeddings", masked_lm=True)

    families.write(tmp_path, config, {"lm_head.decoder.weight" if n == word else n: s for n, s in shapes.items()})
    loaded = load_pretrained(tmp_path, masked_lm=True)  # the copy is all there is: it is read, and exported under its name
    assert loaded.spelled["encoder.embeddings.word.embedding"] == "lm_head.decoder.weight"
    save_pretrained(loaded, loaded.params, tmp_path / "out", trained=False)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(load_file(tmp_path / "model.safetensors"))


VARIANTS = {
    "roberta, gelu_new, other padding": ("roberta", {"hidden_act": "gelu_new", "pad_token_id": 3, "type_vocab_size": 2}),
    "roberta, relu, one deep head": ("roberta", {"hidden_act": "relu", "num_attention_heads": 1, "num_hidden_layers": 4}),
    "xlm-roberta, wide": ("xlm-roberta", {"hidden_size": 48, "intermediate_size": 20, "num_attention_heads": 6}),
    "distilbert, relu": ("distilbert", {"activation": "relu", "dim": 40, "n_heads": 5}),
    "distilbert, sinusoids": ("distilbert", {"sinusoidal_pos_embds": True, "n_layers": 3}),
    "electra, no projection": ("electra", {"embedding_size": 24, "type_vocab_size": 3}),
    "electra, silu": ("electra", {"hidden_act": "silu", "embedding_size": 40}),
    "mpnet, tanh, many heads": ("mpnet", {"hidden_act": "tanh", "num_attention_heads": 8}),
    "mpnet, long": ("mpnet", {"max_position_embeddings": 400, "num_hidden_layers": 1}),
}


def random_model(kind, config):
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, kind)
    model = made(made.config_class(**{"initializer_range": 0.3, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_random_models_equal_pytorchs_both_ways(name, tmp_path):
    import transformers
    from torch_reference import torch_outputs

    model_type, changes = VARIANTS[name]
    prefix, sizes = families.ENCODERS[model_type]
    config = {**sizes, **changes}
    batch = families.inputs(config["pad_token_id"], config.get("type_vocab_size", 1), length=300 if "long" in name else 17)
    inputs = {k: v for k, v in batch.items() if k != "token_type_ids" or model_type not in ("distilbert", "mpnet")}
    for head in families.HEADS:
        if head == "ForMaskedLM" and model_type == "electra":
            continue
        classify = head == families.HEADS[0]
        named = {"id2label": dict(enumerate(families.LABELS))} if classify else {}
        theirs = random_model(prefix + head, {**config, **named})
        theirs.save_pretrained(tmp_path / head)
        expected, expected_states = torch_outputs(theirs, inputs)
        loaded = load_pretrained(tmp_path / head, masked_lm=not classify)
        assert loaded.new == ()
        logits, states = outputs(loaded, batch)
        mask = batch["attention_mask"]
        for ours, state in zip(states, expected_states, strict=True):
            assert families.differ(ours, state, mask) <= 2e-5
        assert families.differ(logits, expected, None if classify else mask) <= 2e-5

        changed = {n: value * 1.01 for n, value in loaded.params.items()}
        save_pretrained(loaded, changed, tmp_path / f"{head} back")
        auto = transformers.AutoModelForSequenceClassification if classify else transformers.AutoModelForMaskedLM
        back, notes = auto.from_pretrained(tmp_path / f"{head} back", output_loading_info=True)
        assert not any(notes.values()), notes
        assert type(back) is type(theirs)
        again, _ = outputs(load_pretrained(tmp_path / f"{head} back", masked_lm=not classify), batch)
        assert families.differ(again, torch_outputs(back, inputs)[0], None if classify else mask) <= 2e-5


@pytest.mark.parity
def test_the_golden_values_are_pytorchs(tmp_path):
    import transformers
    from torch_reference import torch_outputs

    golden = np.load(families.GOLDEN / "families.npz")
    for kind in KINDS:
        families.write_golden(tmp_path, kind)
        model_type = kind.split()[0]
        name = families.golden_shapes()[kind][0]["architectures"][0]
        model = getattr(transformers, name).from_pretrained(tmp_path).double()
        logits, states = torch_outputs(model, inputs_for(model_type, families.ENCODERS[model_type][1]))
        assert families.differ(families.few(logits), golden[f"{kind}/logits"]) <= 1e-6
        assert families.differ(families.few(np.stack(states)), golden[f"{kind}/states"]) <= 1e-6


@pytest.mark.parity
def test_distance_buckets_are_pytorchs():
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    from ftjax.models.layers import relative_buckets

    for buckets, furthest, length in ((32, 128, 1500), (8, 20, 100), (64, 256, 1500), (6, 17, 200)):
        way = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        for causal in (False, True):
            theirs = T5Attention._relative_position_bucket(way, not causal, buckets, furthest).numpy()
            ours = relative_buckets(length, length, buckets=buckets, max_distance=furthest, causal=causal)
            assert np.array_equal(ours, theirs), (buckets, furthest, causal)


def test_rows_of_a_small_table_are_chosen_as_they_are_looked_up():
    table = jax.random.normal(jax.random.key(0), (FEW, 6))
    ids = jax.random.randint(jax.random.key(1), (3, 5), 0, FEW)
    weights = jax.random.normal(jax.random.key(2), (3, 5, 6))
    np.testing.assert_array_equal(chosen(table, ids), table[ids])
    ours, reference = (
        jax.grad(lambda table, rows=rows: (rows(table, ids) * weights).sum())(table)
        for rows in (chosen, lambda table, ids: table[ids])
    )
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-6)
