"""The next-token loss: in blocks as in one piece, on packed rows as on single ones, and what it never holds."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from decoders import SMALL, decoder_inputs
from test_decoders import tiny

from ftjax.models import CONFIGS, build
from ftjax.objectives import Term
from ftjax.objectives.causal_lm import CausalLM, blockwise, next_tokens, token_sums
from ftjax.objectives.classification import cross_entropy
from ftjax.optimizer import adamw
from ftjax.partition import label
from ftjax.step import create_state, train_step


def plainly(model, params, batch):
    """(sum, weight) from the logits of all positions at once."""
    module = model.bind(params)
    losses, weights = cross_entropy(module.vocabulary_logits(module.hidden_states(batch)[-1]), next_tokens(batch))
    return losses.sum(), weights.sum()


def gradients(loss, params):
    return jax.jit(jax.value_and_grad(lambda params: (lambda pair: pair[0] / pair[1])(loss(params))))(params)


@pytest.mark.parametrize(("name", "precision"), [("gpt2", "float32"), ("gemma2", "float32"), ("llama 3", "bfloat16")])
def test_blocks_give_the_value_and_the_gradient_of_the_whole(name, precision):
    model, params = tiny(name, causal_lm=True, precision=precision)
    batch = decoder_inputs() | {"loss_mask": (np.arange(4 * 13).reshape(4, 13) % 3 > 0).astype(np.int32)}
    expected, reference = gradients(lambda params: plainly(model, params, batch), params)
    tolerance = 1e-5 if precision == "float32" else 1e-2  # sums of rounded products, in another order
    for block in (5, 13, 1000):
        found, ours = gradients(lambda params, block=block: CausalLM(model, block)(params, batch, None)[0], params)
        assert abs(float(found) - float(expected)) <= 1e-5 * float(expected)
        for n, gradient in ours.items():
            other = np.asarray(reference[n])
            assert np.abs(np.asarray(gradient) - other).max() <= tolerance * max(np.abs(other).max(), 1e-2), n


def dots(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text().count(" dot(")


def test_logits_are_computed_once_and_a_matrix_that_does_not_train_has_no_gradient():
    hidden, matrix = jnp.ones((4, 6, 8)), jnp.ones((8, 30))
    labels = jnp.zeros((4, 6), jnp.int32)

    def loss(hidden, matrix):
        return blockwise(lambda x: x @ matrix, hidden, labels, 5)[0]

    assert dots(loss, hidden, matrix) == 1
    assert dots(jax.grad(loss), hidden, matrix) == 2
    assert dots(jax.grad(loss, (0, 1)), hidden, matrix) == 3


def test_only_what_is_likelier_than_all_others_is_right():
    scores = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 2.0, 2.0], [3.0, 2.0, 1.0], [9.0, 0.0, 0.0]])
    _, right = token_sums(scores, jnp.asarray([0, 1, 1, 1, -100]))
    assert right == 1


def largest_buffer(program):
    """Elements of the largest array in a compiled program's text."""
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|pred|u8)\[([\d,]+)\]", program.as_text())
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("tied", [True, False])
def test_the_compiled_step_never_holds_the_logits_of_all_positions(tied):
    rows, length, vocabulary, block = 8, 32, 4096, 16
    raw = SMALL | {"model_type": "llama", "vocab_size": vocabulary, "num_hidden_layers": 1, "tie_word_embeddings": tied}
    model = build(CONFIGS["llama"].from_dict(raw, "config.json"), causal_lm=True)
    ids = np.zeros((rows, length), np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "example_ids": np.arange(rows, dtype=np.int32)}
    params = random_params(model)

    def program(loss):
        terms = (Term("causal_lm", 1.0, loss),)
        state = create_state(params, label(params, "all", layers=1), terms, adamw(params, 1e-2))
        return jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()

    whole = program(lambda params, batch, seeds: (plainly(model, params, batch), {}))
    blocks = program(CausalLM(model, block))
    assert largest_buffer(whole) >= rows * length * vocabulary
    assert largest_buffer(blocks) <= vocabulary * max(block, SMALL["hidden_size"])  # a block's logits, or the matrix itself
    assert blocks.memory_analysis().temp_size_in_bytes < 0.3 * whole.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_packed_rows_have_the_loss_of_single_ones(name):
    model, params = tiny(name, causal_lm=True)
    rng = np.random.default_rng(2)
    lengths = [(5, 8), (7, 3, 1)]
    documents = [[rng.integers(3, 96, n) for n in row] for row in lengths]
    packed, segments = np.zeros((2, 14), np.int32), np.zeros((2, 14), np.int32)
    for i, row in enumerate(documents):
        packed[i, : sum(lengths[i])] = np.concatenate(row)
        segments[i, : sum(lengths[i])] = np.repeat(np.arange(1, len(row) + 1), lengths[i])
    single, mask = np.zeros((5, 8), np.int32), np.zeros((5, 8), np.int32)
    for i, document in enumerate(d for row in documents for d in row):
        single[i, : len(document)], mask[i, : len(document)] = document, 1
    loss = CausalLM(model, block=8)
    expected, reference = gradients(lambda p: loss(p, {"input_ids": single, "attention_mask": mask}, None)[0], params)
    found, ours = gradients(lambda p: loss(p, {"input_ids": packed, "segment_ids": segments}, None)[0], params)
    assert abs(float(found) - float(expected)) <= 1e-6 * float(expected)
    for n in params:
        assert np.abs(np.asarray(ours[n]) - np.asarray(reference[n])).max() <= 1e-5, n
    weight = loss(params, {"input_ids": packed, "segment_ids": segments}, None)[0][1]
    assert weight == sum(n - 1 for row in lengths for n in row)


def test_what_counts_as_a_next_token():
    ids = np.array([[0, 5, 6, 7, 8, 0]], np.int32)
    mask = np.array([[0, 1, 1, 1, 1, 0]], np.int32)
    none = -100
    assert next_tokens({"input_ids": ids, "attention_mask": mask}).tolist() == [[none, 6, 7, 8, none, none]]
    segments = np.array([[0, 1, 1, 2, 2, 0]], np.int32)
    assert next_tokens({"input_ids": ids, "segment_ids": segments}).tolist() == [[none, 6, none, 8, none, none]]
    chosen = np.array([[1, 1, 0, 1, 0, 0]], np.int32)
    batch = {"input_ids": ids, "attention_mask": mask, "loss_mask": chosen}
    assert next_tokens(batch).tolist() == [[none, none, 7, none, none, none]]
    model, params = tiny("gpt2", causal_lm=True)
    (total, weight), metrics = CausalLM(model)(params, batch | {"loss_mask": 0 * chosen}, None)
    assert (float(total), float(weight)) == (0.0, 0.0)
    assert metrics["causal_lm_accuracy"][1] == 0


def test_microbatches_and_a_scan_make_no_difference_to_a_step():
    batch = decoder_inputs() | {"example_ids": np.arange(4, dtype=np.int32)}
    results = []
    for scan, microbatches in ((False, 1), (True, 2)):
        model, params = tiny("gpt2", causal_lm=True, scan=scan)
        model = build(dataclasses.replace(model.config, embedding_dropout=0.1), **dict(model.heads))
        labels = label(params, "all", layers=2)
        terms = (Term("causal_lm", 1.0, CausalLM(model, block=8)),)
        state = create_state(params, labels, terms, adamw(params, 1e-2), microbatches=microbatches)
        state, metrics = jax.jit(train_step)(state, batch)
        results.append((state.params, {name: float(a / b) for name, (a, b) in metrics.items()}))
    (plain, metrics), (other, others) = results
    assert metrics.keys() == others.keys() == {"loss", "causal_lm_loss", "causal_lm_accuracy", "gradient_norm"}
    for name, value in metrics.items():
        assert value == pytest.approx(others[name], rel=1e-5), name
    for name, value in plain.items():
        if not name.endswith("attention.key.bias"):  # moves all scores alike: its gradient is rounding, which Adam blows up
            assert np.abs(np.asarray(value) - np.asarray(other[name])).max() <= 1e-4, name
    assert jnp.isfinite(metrics["loss"])
