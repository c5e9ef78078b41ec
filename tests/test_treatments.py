"""Rules, learning-rate multipliers, layer decay, gradual unfreezing and low-rank matrices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_batch, random_params, tiny_config, tiny_model

from ftjax.errors import InputError
from ftjax.models import Lora, build, merge_lora, with_lora
from ftjax.objectives import Term
from ftjax.objectives.classification import Classification, class_logits
from ftjax.optimizer import adafactor, adamw, carry_over, learning_rate_schedule
from ftjax.partition import KNOWN, PRESETS, Treatment, label, labels_of, lora_part, pattern, read_rules, treat, without_lora
from ftjax.pretrained import load_pretrained, save_pretrained
from ftjax.pretrained.load import add_lora
from ftjax.step import create_state, train_step

NAMES = tuple(tiny_model()[0].shapes)


@pytest.fixture
def rules(tmp_path):
    """Write a table of rules; its spec."""

    def write(text):
        path = tmp_path / "rules.txt"
        path.write_text(text, encoding="utf-8")
        return f"rules:{path}"

    return write


def test_the_first_rule_that_matches_decides(rules):
    spec = rules(
        r"""
        # heads learn faster
        head                                  trained  learning-rate=2
        encoder\.layers\.1\..*\.bias          frozen          # not these
        last:1                                trained  learning-rate=0.5 weight-decay=0
        .*                                    frozen
        """
    )
    found = treat(NAMES, spec, layers=2)
    assert found["classifier.kernel"] == Treatment(True, 2.0)
    assert found["encoder.layers.1.mlp.up.kernel"] == Treatment(True, 0.5, 0.0)
    assert not found["encoder.layers.1.mlp.up.bias"].trained
    assert not found["encoder.layers.0.mlp.up.kernel"].trained
    assert set(found) == set(NAMES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head trained\n", "no rule covers encoder."),
        ("heads trained\n.* frozen\n", "line 1 heads: matches no parameter. Did you mean 'head'?"),
        (
            "head trained\nclasifier.bias trained\n.* frozen",
            "line 2 clasifier.bias: matches no parameter. Did you mean 'classifier.bias'?",
        ),
        ("head\n", "line 1: after 'head' must stand"),
        ("head learn\n", "must stand"),
        ("head frozen learning-rate=2\n", "must stand"),
        ("head trained lr=2\n", "line 1: 'lr=2' is not"),
        ("head trained learning_rate=2\n", "Did you mean 'learning-rate'?"),
        ("head trained learning-rate=0\n", "positive"),
        ("head trained learning-rate=inf\n", "positive"),
        ("head trained weight-decay=-1\n", "positive"),
        ("(( trained\n", "line 1: not a regular expression"),
        ("last:9 trained\n", "line 1: K in last:K"),
        ("top:0 trained\n", "line 1: FRACTION"),
        ("# nothing\n\n", "holds no rule"),
    ],
)
def test_rules_that_are_mistakes(text, words, rules):
    with pytest.raises(InputError) as caught:
        treat(NAMES, rules(text), layers=2)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rules_file_that_cannot_be_read_or_stands_beside_other_parts(tmp_path):
    (tmp_path / "latin").write_bytes(b"head\xff trained")
    for spec, words in (
        (f"rules:{tmp_path / 'none'}", "No such file"),
        (f"rules:{tmp_path / 'latin'}", "not UTF-8"),
        (f"head,rules:{tmp_path / 'none'}", "stands alone"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            treat(NAMES, spec, layers=2)


def test_every_spec_that_is_known_is_understood(tmp_path):
    for spec in KNOWN:
        if not spec.startswith("rules:"):
            given = spec.replace("K", "2").replace("FRACTION", "0.5").replace("R", "8").replace("PATTE8N", ".*")
            assert re.compile(pattern(given, 4))
    assert set(PRESETS) <= set(KNOWN)
    assert len(read_rules(_write(tmp_path / "r", "".join(f"{name} trained\n" for name in PRESETS)))) == len(PRESETS)


def _write(path, text):
    path.write_text(text)
    return path


def test_layer_decay_counts_layers_from_the_head():
    found = treat(NAMES, "all", layers=2, layer_decay=0.5)
    for number, rate in ((0, 0.25), (1, 0.5)):
        assert {t.learning_rate for name, t in found.items() if f".layers.{number}." in name} == {rate}
    assert found["encoder.embeddings.word.embedding"].learning_rate == 0.125
    assert found["classifier.bias"].learning_rate == 1.0


def one_update(treatments, gradient=1.0, **options):
    """What AdamW adds to parameters that are all 1, in its first step."""
    params = {name: jnp.ones((2, 2)) for name in treatments}
    optimizer = adamw(treatments, 0.1, max_gradient_norm=None, eps=1e-30, **options)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(lambda p: gradient * p, params), optimizer.init(params), params)
    return {name: float(value[0, 0]) for name, value in updates.items()}


def test_learning_rate_and_weight_decay_of_a_treatment():
    found = one_update(
        {
            "a.kernel": Treatment(True),
            "b.kernel": Treatment(True, 0.5),
            "c.kernel": Treatment(True, 2.0, 0.3),
            "d.bias": Treatment(True),
            "e.bias": Treatment(True, 1.0, 0.2),
        },
        weight_decay=0.1,
    )
    # a first step of Adam is the sign of the gradient; decay is added to it before the learning rate
    expected = {"a.kernel": 1.1, "b.kernel": 0.5 * 1.1, "c.kernel": 2 * 1.3, "d.bias": 1.0, "e.bias": 1.2}
    for name, value in expected.items():
        assert found[name] == pytest.approx(-0.1 * value, rel=1e-5), name


def test_what_is_unfrozen_later_starts_adam_anew_and_follows_the_runs_schedule():
    """Two stages by optax equal two Adams by hand, one of which starts at step 3."""
    schedule = learning_rate_schedule(0.1, steps=10)
    early, late = Treatment(True), Treatment(True, 1.0, None, from_step=3)
    stages = [{"a.kernel": early}, {"a.kernel": early, "b.kernel": late}]
    optimizers = [adamw(stage, schedule, max_gradient_norm=None, weight_decay=0.0) for stage in stages]
    params = {"a.kernel": jnp.ones((2, 2)), "b.kernel": jnp.ones((2, 2))}
    rng = np.random.default_rng(0)
    gradients = [{n: jnp.asarray(rng.standard_normal((2, 2)), jnp.float32) for n in params} for _ in range(7)]

    found, state = dict(params), optimizers[0].init({"a.kernel": params["a.kernel"]})
    for step, gradient in enumerate(gradients):
        stage = int(step >= 3)
        trained = {n: found[n] for n in stages[stage]}
        if step == 3:
            state = carry_over(state, optimizers[1].init(trained))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizers[stage].update({n: gradient[n] for n in trained}, state, trained)
        found |= optax.apply_updates(trained, updates)

    for name, start in (("a.kernel", 0), ("b.kernel", 3)):
        p, m, v = np.ones((2, 2)), 0.0, 0.0
        for step in range(start, 7):
            g, t = np.asarray(gradients[step][name], np.float64), step - start + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - float(schedule(step)) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(np.asarray(found[name]), p, rtol=1e-5)


def lora_model(rank=2, alpha=4.0):
    model = build(tiny_config(), num_labels=2)
    modules = tuple(f"encoder.layers.{i}.attention.{name}" for i in range(2) for name in ("query", "value"))
    return with_lora(model, Lora(rank, alpha, modules))


def test_lora_by_hand_and_merged():
    model = lora_model()
    params = random_params(model)
    batch = jax.tree.map(jnp.asarray, random_batch())
    plain = build(tiny_config(), num_labels=2)
    merged = merge_lora(model, params)
    assert set(merged) == set(plain.shapes)
    name = "encoder.layers.0.attention.query"
    a, b, kernel = (np.asarray(params[f"{name}.{part}"], np.float64) for part in ("lora_a", "lora_b", "kernel"))
    np.testing.assert_allclose(np.asarray(merged[f"{name}.kernel"]), kernel + 4.0 / 2 * a @ b, rtol=1e-5)
    logits = jax.jit(class_logits, static_argnums=0)
    np.testing.assert_allclose(
        np.asarray(logits(model, params, batch, None)), np.asarray(logits(plain, merged, batch, None)), rtol=1e-4, atol=1e-5
    )


def test_lora_trains_its_matrices_alone_and_starts_from_the_model():
    model = lora_model()
    params = random_params(model)
    params |= {n: jnp.zeros_like(p) for n, p in params.items() if n.endswith("lora_b")}
    labels = label(params, "lora:2", layers=2)
    trained = {n for n, found in labels.items() if found == "trained"}
    assert trained == {n for n in params if n.endswith((".lora_a", ".lora_b"))}
    state = create_state(
        params, labels, (Term("classification", 1.0, Classification(model)),), adamw(trained, 1e-2, weight_decay=0.0)
    )
    first, _ = jax.jit(train_step)(state, random_batch())
    for n in trained:
        moved = not np.array_equal(np.asarray(first.trainable[n]), np.asarray(params[n]))
        assert moved == n.endswith("lora_b"), n  # A's gradient is 0 as long as B is
    second, _ = jax.jit(train_step)(first, random_batch(seed=1))
    assert all(not np.array_equal(np.asarray(second.trainable[n]), np.asarray(params[n])) for n in trained)


def test_the_rank_of_a_spec_and_what_trains_besides(rules):
    assert lora_part("lora:8,head") == 8
    assert lora_part("last:2") is None
    assert lora_part(rules("lora:4 trained\nhead trained\n.* frozen")) == 4
    with pytest.raises(InputError, match="two ranks"):
        lora_part("lora:8,lora:4")
    kernels = without_lora("lora:8,last:1", NAMES, layers=2)
    assert kernels == {n for n in NAMES if ".layers.1." in n}
    spec = rules("encoder\\.layers\\.1\\.mlp\\..* frozen\nlast:1 trained\nlora:4 trained\n.* frozen")
    assert "encoder.layers.1.mlp.up.kernel" not in without_lora(spec, NAMES, layers=2)


def test_an_export_holds_merged_kernels_and_no_low_rank_matrices(tiny_bert, tmp_path):
    name = "encoder.layers.0.mlp.up"
    pretrained = add_lora(load_pretrained(tiny_bert, labels=("a", "b")), Lora(2, 2.0, (name,)))
    assert not np.asarray(pretrained.params[f"{name}.lora_b"]).any()
    assert np.asarray(pretrained.params[f"{name}.lora_a"]).any()
    changed = {**pretrained.params, f"{name}.lora_b": jnp.ones_like(pretrained.params[f"{name}.lora_b"])}
    save_pretrained(pretrained, changed, tmp_path / "model")
    again = load_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(
        np.asarray(again.params[f"{name}.kernel"]), np.asarray(merge_lora(pretrained.model, changed)[f"{name}.kernel"])
    )
    assert labels_of(treat(again.params, "head", layers=2)).keys() == again.params.keys()
    assert dataclasses.replace(again.model, lora=None) == again.model


def test_moments_can_be_smaller_than_adamws_in_float32():
    params = {"a.kernel": jnp.ones((256, 128)), "a.bias": jnp.ones((128,))}
    size = lambda state: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))  # noqa: E731
    whole, half, factored = (
        size(optimizer.init(params))
        for optimizer in (adamw(params, 1e-3), adamw(params, 1e-3, moment_dtype="bfloat16"), adafactor(params, 1e-3))
    )
    assert half == pytest.approx(6 / 8 * whole, rel=1e-3)
    assert factored < 0.02 * whole


def test_adafactor_by_hand():
    """One step: mean squares of rows and columns in the place of squares, an update of root mean square 1 at most."""
    rng = np.random.default_rng(0)
    gradient, value = rng.standard_normal((2, 6, 4)).astype(np.float32)
    optimizer = adafactor(["kernel"], 0.1, weight_decay=0.5, max_gradient_norm=None, min_dim_size_to_factor=4)
    params = {"kernel": jnp.asarray(value)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update({"kernel": jnp.asarray(gradient)}, optimizer.init(params), params)
    squares = gradient**2
    estimate = squares.mean(1, keepdims=True) * squares.mean(0, keepdims=True) / squares.mean()
    update = gradient / np.sqrt(estimate)
    update /= max(1.0, np.sqrt((update**2).mean()))
    np.testing.assert_allclose(np.asarray(updates["kernel"]), -0.1 * (update + 0.5 * value), rtol=1e-4)
