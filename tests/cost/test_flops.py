"""Model FLOPs by formula, and by the dot products that the step asks for."""

import jax
import jax.numpy as jnp
import pytest
from conftest import random_batch, tiny_config

from ftjax.cost.flops import model_flops, program_flops
from ftjax.models import build
from ftjax.models.bert import BertConfig
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification
from ftjax.objectives.masked_lm import MaskedLM
from ftjax.partition import label


def classify(model):
    return (Term("classification", 1.0, Classification(model)),)


def test_full_is_six_operations_a_number_and_token_and_attention():
    model = build(BertConfig(), num_labels=2)
    labels = label(model.shapes, "all", layers=12)
    matrices = 12 * (4 * 768**2 + 2 * 768 * 3072)
    heads = 6 * (768 * 768 + 768 * 2)
    expected = 256 * (128 * (6 * matrices + 12 * 12 * 128 * 768) + heads)
    assert model_flops(model, labels, classify(model), 256, 128) == expected


def test_frozen_layers_cost_a_third_and_nothing_once_their_output_is_kept():
    config = tiny_config(num_hidden_layers=4)
    model = build(config, num_labels=2)
    per_layer = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 32 * 16  # forward, of one token at length 32
    labels = label(model.shapes, "last:1,head", layers=4)
    model = model.freeze([name for name, found in labels.items() if found == "trained"])
    heads = 8 * 6 * (16 * 16 + 16 * 2)
    assert model_flops(model, labels, classify(model), 8, 32) == 8 * 32 * per_layer * (3 + 3) + heads
    assert model_flops(model, labels, classify(model), 8, 32, prefix=True) == 8 * 32 * per_layer * 3 + heads


def test_biases_need_input_gradients_but_no_weight_gradients():
    model = build(tiny_config(), num_labels=2)
    labels = label(model.shapes, "bias", layers=2)
    matrices, attention = 2 * (4 * 16 * 16 + 2 * 16 * 32), 2 * 4 * 32 * 16
    expected = 8 * (32 * (4 * matrices + 3 * attention) + 4 * (16 * 16 + 16 * 2))
    assert model_flops(model, labels, classify(model), 8, 32) == expected


def test_masked_language_modelling_reads_some_positions_with_the_whole_vocabulary():
    model = build(tiny_config(), masked_lm=True)
    labels = label(model.shapes, "all", layers=2)
    terms = (Term("masked_lm", 1.0, MaskedLM(model, 4, (0,), 0.15)),)
    layers = 6 * 2 * (4 * 16 * 16 + 2 * 16 * 32) + 12 * 2 * 20 * 16
    assert model_flops(model, labels, terms, 8, 20) == 8 * (20 * layers + 3 * 6 * (16 * 16 + 64 * 16))


def test_dot_products_of_a_program_count_loops_by_their_turns():
    w = jnp.ones((8, 8))

    def looped(x):
        return jax.lax.scan(lambda x, _: (jnp.dot(x, w), None), x, None, length=7)[0].sum()

    def unrolled(x):
        for _ in range(7):
            x = jnp.dot(x, w)
        return x.sum()

    x = jnp.ones((4, 8))
    assert program_flops(unrolled, x) == 7 * 2 * 4 * 8 * 8
    assert program_flops(looped, x) == program_flops(unrolled, x)
    assert program_flops(jax.grad(looped), x) == pytest.approx(program_flops(jax.grad(unrolled), x))


def test_the_step_asks_for_no_more_than_the_formula():
    """All but the first token of the last layer is left out, and what is nobody's input gradient."""
    config = tiny_config(num_hidden_layers=6)
    model = build(config, num_labels=2)
    labels = label(model.shapes, "all", layers=6)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=8, length=32))
    params = {name: jnp.zeros(shape.shape) for name, shape in model.shapes.items()}
    loss = lambda p: classify(model)[0].loss(p, batch, None)[0][0]  # noqa: E731
    asked, needed = program_flops(jax.grad(loss), params), model_flops(model, labels, classify(model), 8, 32)
    assert 0.8 * needed < asked < needed
