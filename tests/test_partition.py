import jax
import numpy as np
import pytest
from conftest import random_batch, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ftjax.errors import InputError
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.optimizer import adamw
from ftjax.partition import count, label, split, split_spec
from ftjax.step import create_state, train_step

NAMES = tuple(tiny_model()[0].shapes)
ENDINGS = {
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "mlp.up",
    "mlp.down",
    "attention_norm",
    "mlp_norm",
}


def trained(spec, **kwargs):
    return {name for name, found in label(NAMES, spec, layers=2, **kwargs).items() if found == "trained"}


def layer(number):
    return {name for name in NAMES if name.startswith(f"encoder.layers.{number}.")}


HEAD = {name for name in NAMES if name.startswith(("pooler.", "classifier.", "masked_lm."))}
EMBEDDINGS = {name for name in NAMES if name.startswith("encoder.embeddings.")}
NORMS = {n for n in NAMES if n.rsplit(".", 1)[0].endswith("norm")}
CASES = {
    "all": set(NAMES),
    "head": HEAD,
    "last:1": layer(1),
    "last:2": layer(0) | layer(1),
    "bias": {name for name in NAMES if name.endswith(".bias")},
    "layernorm": NORMS,
    "embeddings": EMBEDDINGS,
    "last:1,head": layer(1) | HEAD,
    "embeddings, bias": EMBEDDINGS | {name for name in NAMES if name.endswith(".bias")},
    r"regex:encoder\.layers\.[0,1]\.mlp\..*": {n for n in layer(0) | layer(1) if ".mlp." in n},
    "attention": {n for n in NAMES if ".attention." in n},
    "mlp": {n for n in NAMES if ".mlp." in n},
    "every-other": layer(1),
    "top:0.5": layer(1),
    "top:0.51": layer(0) | layer(1),
    r"head,regex:encoder\.layers\.0\..*": HEAD | layer(0),
}


@pytest.mark.parametrize("spec", CASES)
def test_what_every_spec_trains(spec):
    assert trained(spec) == CASES[spec]
    assert CASES[spec]


def test_the_layernorm_preset_means_norms_only():
    assert len(NORMS) == 2 * (1 + 2 * 2 + 1)
    assert {n.rsplit(".", 1)[-1] for n in NORMS} == {"scale", "bias"}


def test_new_parameters_always_train():
    assert trained("last:1", always=["classifier.kernel"]) == layer(1) | {"classifier.kernel"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("last:0", "from 1 to 2"),
        ("last:3", "from 1 to 2"),
        ("last:x", "from 1 to 2"),
        ("heads", "Did you mean 'head'?"),
        ("regex:(", "not a regular expression"),
        ("regex:pooler.kernal", "Did you mean 'pooler.kernel'?"),
        ("", "empty"),
        (",", "empty"),
    ],
)
def test_specs_that_are_mistakes(spec, words):
    with pytest.raises(InputError, match=r"--train-parameters") as caught:
        label(NAMES, spec, layers=2)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"), [("head", "embeddings, which embeddings trains"), ("bias", "Names look like decoder.")]
)
def test_what_is_spelled_right_but_not_in_a_model_with_tied_embeddings(spec, said):
    names = ("decoder.embeddings.word.embedding", "decoder.layers.0.mlp.up.kernel")
    with pytest.raises(InputError, match=said) as error:
        label(names, f"last:1,{spec}", layers=1)
    assert "Did you mean" not in str(error.value)


def test_a_regular_expression_may_hold_commas():
    assert split_spec("head,last:2,regex:a{1,2}") == ["head", "last:2", "regex:a{1,2}"]


@given(st.sets(st.sampled_from(NAMES)))
def test_split_is_a_partition(chosen):
    labels = {name: "trained" if name in chosen else "frozen" for name in NAMES}
    values = {name: i for i, name in enumerate(NAMES)}
    trainable, frozen = split(values, labels)
    assert set(trainable) == chosen
    assert {**frozen, **trainable} == values
    assert not set(trainable) & set(frozen)


@pytest.mark.parametrize("spec", ["head", "last:1,bias", "layernorm", "embeddings"])
def test_frozen_parameters_keep_every_bit_and_trained_ones_move(spec):
    model, params = tiny_model()
    labels = label(NAMES, spec, layers=2)
    objective = (
        Term("classification", 1.0, Classification(model)),
        Term("masked_lm", 0.1, MaskedLM(model, 4, (0, 1, 2, 3, 4))),
    )
    names = [name for name, found in labels.items() if found == "trained"]
    state = create_state(params, labels, objective, adamw(names, 1e-2))
    assert count(state.trainable) + count(state.frozen) == sum(p.size for p in params.values())
    inner = next(iter(state.optimizer_state[1].inner_states.values()))
    assert set(inner.inner_state[0].mu) == set(names)
    for step in range(3):
        state, _ = jax.jit(train_step)(state, random_batch(seed=step))
    for name, before in params.items():
        same = np.array_equal(np.asarray(before), np.asarray(state.params[name]))
        assert same == (labels[name] == "frozen"), name
