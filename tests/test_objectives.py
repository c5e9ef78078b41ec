"""The self-supervised objectives: values by hand, gradients, weights, and what they must not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_batch, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.errors import InputError
from ftjax.objectives import rows
from ftjax.objectives.augment import (
    Identity,
    SpanDeletion,
    TokenDropout,
    WordSwap,
    compact,
    deleted_span,
    dropped_tokens,
    swapped_neighbours,
)
from ftjax.objectives.classification import class_logits, cross_entropy
from ftjax.objectives.consistency import Consistency, confident, sharpened_divergence
from ftjax.objectives.contrastive import (
    DropoutPairs,
    LabelPairs,
    cosine_similarity,
    embeddings,
    info_nce,
    mean_pool,
    pair_regression,
)
from ftjax.objectives.entropy import Entropy, entropy
from ftjax.objectives.masked_lm import MaskedLM, choose_words, mask_tokens, wordpiece_continuations
from ftjax.objectives.pseudo_label import PseudoLabel, pseudo_labels
from ftjax.objectives.schedule import over
from ftjax.objectives.teacher import PREFIX, teacher_logits, teacher_params
from ftjax.random import example_seeds
from ftjax.weight import Weight, parse_weight

CLS, SEP, MASK, PAD = 1, 2, 4, 0
SPECIAL = (0, 1, 2, 3, 4)
VOCABULARY = [f"##{i}" if i % 3 == 0 and i > 4 else str(i) for i in range(64)]
TABLE = wordpiece_continuations(VOCABULARY, 64)

# Dropout on hidden states does not depend on padding, that on attention weights does: see ftjax.random.
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
NO_DROPOUT = DROPOUT | {"hidden_dropout_prob": 0.0}

LOSSES = {
    "masked_lm": lambda model: MaskedLM(model, MASK, SPECIAL, whole_word=True, static=True, continuations=TABLE),
    "dropout_pairs": lambda model: DropoutPairs(model),
    "dropout_pairs_first_token": lambda model: DropoutPairs(model, "first-token"),
    "label_pairs": lambda model: LabelPairs(model),
    "consistency": lambda model: Consistency(model, SpanDeletion(SPECIAL, 0.4), threshold=0.6),
    "consistency_all_rows": lambda model: Consistency(model, WordSwap(SPECIAL, 0.5), all_rows=True),
    "pseudo_label": lambda model: PseudoLabel(model, TokenDropout(SPECIAL, 0.3), WordSwap(SPECIAL), threshold=0.55),
    "entropy": lambda model: Entropy(model),
}


@functools.cache
def small_model(dropout=True):
    """One layer, and a classifier that is sure of some rows and not of others."""
    model, params = tiny_model(config=DROPOUT if dropout else NO_DROPOUT)
    return model, params | {"classifier.kernel": 8.0 * params["classifier.kernel"]}


@functools.partial(jax.jit, static_argnums=0)
def measured(loss, params, batch, seeds):
    return loss(params, batch, seeds)


logits_of = jax.jit(class_logits, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(loss, params, batch, seeds):
    def total(params):
        (total, weight), metrics = loss(params, batch, seeds)
        return total, (weight, metrics)

    return jax.value_and_grad(total, has_aux=True)(params)


def seeds_of(batch, step=0):
    return example_seeds(jax.random.fold_in(jax.random.key(0), step), jnp.asarray(batch["example_ids"]))


def padded(batch, rows=2, columns=8):
    """The batch with rows that only fill it and with more padding."""
    fill = {"labels": -100, "example_ids": -1}
    return {
        name: np.pad(value, [(0, rows), *[(0, columns)] * (value.ndim - 1)], constant_values=fill.get(name, 0))
        for name, value in batch.items()
    }


def assert_close(a, b, **tolerance):
    # a float32 cosine or entropy near zero: sums in another order differ in the last bits of numbers near 1
    tolerance = {"rtol": 2e-4, "atol": 3e-5} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


# ---- what holds for every objective


@pytest.mark.parametrize("name", LOSSES)
def test_finite_gradients_and_no_say_of_padding_or_order(name):
    model, params = small_model()
    loss = LOSSES[name](model)
    batch = random_batch(rows=8, length=12, unlabeled=4)
    (total, weight), metrics = measured(loss, params, batch, seeds_of(batch))
    assert float(total) > 0

    wider = padded(batch)
    (total_wider, (weight_wider, metrics_wider)), gradient = with_gradient(loss, params, wider, seeds_of(wider))
    assert float(weight_wider) == float(weight)  # exactly
    assert_close((total_wider, metrics_wider), (total, metrics))
    gradient = jax.device_get(gradient)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert max(np.abs(g).max() for g in gradient.values()) > 1e-4

    order = np.random.default_rng(1).permutation(8)
    shuffled = {key: value[order] for key, value in batch.items()}
    (total_shuffled, weight_shuffled), _ = measured(loss, params, shuffled, seeds_of(shuffled))
    assert float(weight_shuffled) == float(weight)
    assert_close(total_shuffled, total)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dropout_pairs", 8),  # rows
        ("label_pairs", 6),  # pairs of 4 labelled rows
        ("consistency", 4),  # rows without a label, sure or not
        ("consistency_all_rows", 8),
        ("pseudo_label", 4),
        ("entropy", 4),
    ],
)
def test_weights_and_an_evaluation_that_is_deterministic(name, expected):
    model, params = small_model()
    batch = random_batch(rows=8, length=12, unlabeled=4)
    loss = LOSSES[name](model)
    (total, weight), metrics = measured(loss, params, batch, None)
    assert float(weight) == expected
    assert all(float(w) == expected and 0 <= float(s) <= float(w) for s, w in metrics.values())
    (again, _), _ = measured(LOSSES[name](model), params, batch, None)  # equal by value: no second compilation
    assert float(total) == float(again)


@pytest.mark.parametrize("name", ["masked_lm", "consistency", "pseudo_label", "entropy"])
def test_rows_that_do_not_meet_add_up_over_microbatches(name):
    model, params = small_model()
    loss = LOSSES[name](model)
    batch = random_batch(rows=8, length=12, unlabeled=4)
    halves = [{key: value[i::2] for key, value in batch.items()} for i in (0, 1)]
    whole, *parts = (measured(loss, params, part, seeds_of(part)) for part in (batch, *halves))
    assert_close(jax.tree.map(jnp.add, *parts), whole)


# ---- masked language modelling


def test_whole_words_by_hand():
    #                      [CLS] a   b ##b ##b  c ##c  d [SEP]
    maskable = jnp.array([[0, 1, 1, 1, 1, 1, 1, 1, 0]], bool)
    continues = jnp.array([[0, 0, 0, 1, 1, 0, 1, 0, 0]], bool)

    def chosen(order, wanted):
        """The tokens chosen when the words come in this order."""
        u = jnp.full((1, 9), 0.99).at[0, jnp.array(order)].set(jnp.arange(4) / 10)
        return np.flatnonzero(choose_words(maskable, continues, u, jnp.array([wanted]))[0]).tolist()

    assert chosen([0, 1, 2, 3], 4) == [1, 2, 3, 4]
    assert chosen([1, 0, 2, 3], 2) == [1, 7]  # b does not fit and is passed over; after a, c does not fit either, then d does
    assert chosen([2, 1, 3, 0], 3) == [5, 6, 7]
    assert chosen([1, 2, 3, 0], 2) == [5, 6]
    assert chosen([3, 1, 2, 0], 8) == [1, 2, 3, 4, 5, 6, 7]
    only_b = maskable & (jnp.arange(9)[None] > 1) & (jnp.arange(9)[None] < 5)
    assert not choose_words(only_b, continues, jnp.zeros((1, 9)), jnp.array([2])).any()


def test_a_special_token_ends_a_word():
    maskable, continues = jnp.array([[1, 0, 1, 1]], bool), jnp.array([[0, 0, 1, 1]], bool)
    u = jnp.array([[0.5, 0.1, 0.9, 0.9]])  # the second word, which is ##a ##b after a special token, comes first
    assert choose_words(maskable, continues, u, jnp.array([2])).tolist() == [[False, False, True, True]]


@jax.jit
def mask_whole_words(ids, maskable, continues, seeds):
    return mask_tokens(ids, maskable, seeds, mask_token_id=63, vocab_size=64, probability=0.3, continues=continues)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31 - 1))
def test_whole_words_only_as_many_as_fit_and_no_say_of_padding(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 60, (4, 24)).astype(np.int32)
    maskable = np.cumsum(rng.random((4, 24)) < 0.1, -1) == 0  # a ragged row of text
    continues = rng.random((4, 24)) < 0.4
    seeds = jnp.asarray(rng.integers(0, 2**32, 4, dtype=np.uint32))
    found = mask_whole_words(ids, maskable, continues, seeds)
    wider = mask_whole_words(*(np.pad(x, ((0, 0), (0, 16))) for x in (ids, maskable, continues)), seeds)
    assert np.array_equal(found.input_ids, wider.input_ids[:, :24])
    for row in range(4):
        used = np.asarray(found.labels[row]) >= 0
        chosen = set(np.asarray(found.positions[row])[used].tolist())
        assert len(chosen) == used.sum() <= max(1, np.round(np.float32(0.3) * maskable[row].sum()))
        assert np.array_equal(np.asarray(found.labels[row])[used], ids[row, np.asarray(found.positions[row])[used]])
        for i in range(1, 24):
            if maskable[row, i] and maskable[row, i - 1] and continues[row, i]:
                assert (i in chosen) == (i - 1 in chosen)
        assert all(maskable[row, i] for i in chosen)
        assert set(np.flatnonzero(np.asarray(found.input_ids[row]) != ids[row]).tolist()) <= chosen


def test_the_table_of_a_wordpiece_vocabulary():
    assert wordpiece_continuations(["[PAD]", "play", "##ing"], 5) == b"\0\0\1\0\0"
    model, _ = small_model()
    with pytest.raises(ValueError, match="continuations for 64 ids, not 0"):
        MaskedLM(model, MASK, SPECIAL, whole_word=True)


def test_static_masks_are_those_of_evaluation_at_every_step():
    model, params = small_model(dropout=False)
    batch = random_batch()
    for static in (True, False):
        loss = MaskedLM(model, MASK, SPECIAL, static=static)
        totals = [float(measured(loss, params, batch, seeds)[0][0]) for seeds in (seeds_of(batch), seeds_of(batch, 1), None)]
        # in training the one program, in evaluation another: equal up to rounding
        assert bool(np.ptp(totals) < 1e-4) == static


# ---- contrastive


def test_mean_pool_and_cosine_by_hand():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 5.0], [1.0, 1.0], [1.0, 1.0]]])
    pooled = mean_pool(hidden, jnp.array([[1, 1, 0], [0, 0, 0]]))
    assert pooled.tolist() == [[2.0, 3.0], [0.0, 0.0]]
    similarity = cosine_similarity(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[4.0, 3.0], [-3.0, -4.0]]))
    np.testing.assert_allclose(np.asarray(similarity), [[0.96, -1.0], [0.0, 0.0]], atol=1e-6)
    gradient = jax.grad(lambda x: cosine_similarity(x, x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(np.asarray(gradient)).all()


def test_info_nce_by_hand_without_filler():
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
    real = np.array([True, True, False, True])
    losses, weights, right = info_nce(jnp.asarray(similarity), jnp.asarray(real), 0.05)
    kept = similarity[np.ix_(real, real)].astype(np.float64) / 0.05
    expected = np.log(np.exp(kept).sum(-1)) - np.diag(kept)
    np.testing.assert_allclose(np.asarray(losses)[real], expected, rtol=1e-5, atol=1e-5)
    assert (float(losses[2]), weights.tolist()) == (0.0, [1, 1, 0, 1])
    assert np.asarray(right)[real].tolist() == (kept.argmax(-1) == np.arange(3)).tolist()
    gradient = jax.grad(lambda s: info_nce(s, jnp.asarray(real), 0.05)[0].sum())(jnp.asarray(similarity))
    assert np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[2].any()
    assert not np.asarray(gradient)[:, 2].any()


def test_pair_regression_by_hand():
    similarity = jnp.array([[1.0, 0.2, 0.7, 0.4], [0.2, 1.0, 0.6, 0.1], [0.7, 0.6, 1.0, 0.3], [0.4, 0.1, 0.3, 1.0]])
    losses, weights, right = pair_regression(similarity, jnp.array([1, 0, 1, -100]))
    assert weights.tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(float(losses.sum()), 0.2**2 + 0.3**2 + 0.6**2, rtol=1e-6)
    assert float(right.sum()) == 2  # 0.6 of a pair with different labels is wrong


def test_dropout_makes_the_pairs_of_simcse():
    batch = random_batch(rows=4)
    model, params = small_model(dropout=False)
    (same, _), _ = measured(DropoutPairs(model), params, batch, seeds_of(batch))
    (evaluated, _), metrics = measured(DropoutPairs(model), params, batch, None)
    assert_close(same, evaluated)
    assert float(metrics["contrastive_accuracy"][0]) == 4  # a row is nearest to itself
    rows_ = jax.jit(embeddings, static_argnums=(0, 4))(model, params, batch, None, "mean")
    logits = np.asarray(cosine_similarity(rows_, rows_), np.float64) / 0.05
    np.testing.assert_allclose(float(evaluated), (np.log(np.exp(logits).sum(-1)) - np.diag(logits)).sum(), rtol=1e-4)
    with_dropout, _ = small_model()
    (different, _), _ = measured(DropoutPairs(with_dropout), params, batch, seeds_of(batch))
    assert abs(float(different) - float(same)) > 1e-3


# ---- consistency, pseudo-labels, entropy


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_sharpened_divergence_by_hand_and_its_target_gets_no_gradient():
    rng = np.random.default_rng(0)
    clean, augmented = rng.standard_normal((2, 3, 4)).astype(np.float32)
    p, q = softmax(clean / 0.4), softmax(augmented)
    found = sharpened_divergence(jnp.asarray(clean), jnp.asarray(augmented), 0.4)
    np.testing.assert_allclose(np.asarray(found), (p * np.log(p / q)).sum(-1), rtol=1e-4)
    gradient = jax.grad(lambda a, b: sharpened_divergence(a, b, 0.4).sum(), argnums=(0, 1))(clean, augmented)
    assert not np.asarray(gradient[0]).any()
    np.testing.assert_allclose(np.asarray(gradient[1]), q - p, atol=1e-5)
    extreme = jnp.array([[1e4, -1e4, 0.0]])
    assert np.isfinite(float(sharpened_divergence(extreme, -extreme, 0.1)[0]))


def test_confidence_pseudo_labels_and_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.02, 0.97, 0.01]]))
    assert confident(logits, 0.65).tolist() == [1, 0, 1]
    assert confident(logits, 0.0).tolist() == [1, 1, 1]
    assert pseudo_labels(logits, 0.95).tolist() == [-100, -100, 1]
    assert pseudo_labels(logits, 0.0).dtype == jnp.int32
    p = np.exp(np.asarray(logits, np.float64))
    np.testing.assert_allclose(np.asarray(entropy(logits)), -(p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(float(entropy(jnp.zeros((4,)))), np.log(4), rtol=1e-6)
    extreme = jnp.array([1e5, 0.0, -1e5])
    assert float(entropy(extreme)) == 0.0
    assert np.isfinite(np.asarray(jax.grad(entropy)(extreme))).all()


def test_which_rows_count():
    batch = {"labels": jnp.array([0, -100, -100, 1]), "example_ids": jnp.array([5, 6, -1, 7])}
    assert rows(batch).tolist() == [0, 1, 0, 0]
    assert rows(batch, all_rows=True).tolist() == [1, 1, 0, 1]


def by_hand(batch, teacher_logits, student_logits):
    """(consistency at 0.5 and threshold 0.6, pseudo-label loss at 0.6) over rows without a label, and how many are sure."""
    unlabelled = np.asarray(batch["labels"]) < 0
    teacher, student = (np.asarray(x, np.float64)[unlabelled] for x in (teacher_logits, student_logits))
    sure = softmax(teacher).max(-1) >= 0.6
    p, q = softmax(teacher / 0.5), softmax(student)
    divergence = (sure * (p * np.log(p / q)).sum(-1)).sum()
    return divergence, -(sure * np.log(q[np.arange(len(q)), teacher.argmax(-1)])).sum(), sure.sum()


def test_consistency_and_pseudo_labels_of_a_model_by_hand():
    model, params = small_model(dropout=False)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=8, unlabeled=6))
    logits = logits_of(model, params, batch, None)
    divergence, labelled, sure = by_hand(batch, logits, logits)
    assert 0 < sure < 6
    (total, weight), metrics = measured(Consistency(model, Identity(), 0.5, 0.6), params, batch, seeds_of(batch))
    np.testing.assert_allclose([float(total), float(weight)], [divergence, 6], rtol=1e-4)
    assert [float(x) for x in metrics["consistency_confident"]] == [sure, 6]
    (total, weight), metrics = measured(PseudoLabel(model, Identity(), threshold=0.6), params, batch, seeds_of(batch))
    np.testing.assert_allclose([float(total), float(weight)], [labelled, 6], rtol=1e-4)
    assert [float(x) for x in metrics["pseudo_label_confident"]] == [sure, 6]


@pytest.mark.parametrize("kind", ["consistency", "pseudo_label"])
def test_no_gradient_goes_through_the_target(kind):
    model, params = small_model(dropout=False)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=8, unlabeled=8))
    loss = {"consistency": Consistency(model, Identity(), 0.5), "pseudo_label": PseudoLabel(model, Identity(), threshold=0.6)}
    _, gradient = with_gradient(loss[kind], params, batch, None)
    target = logits_of(model, params, batch, None)

    @jax.jit
    @jax.grad
    def with_constant_target(params):
        logits = class_logits(model, params, batch, None)
        if kind == "consistency":
            return sharpened_divergence(target, logits, 0.5).sum()
        return cross_entropy(logits, pseudo_labels(target, 0.6))[0].sum()

    assert_close(gradient, with_constant_target(params))


def test_a_mean_teacher_rides_in_the_parameters_and_gets_no_gradient():
    model, params = small_model(dropout=False)
    batch = jax.tree.map(jnp.asarray, random_batch(rows=8, unlabeled=6))
    average = {PREFIX + "classifier.kernel": -params["classifier.kernel"]}  # only what trains need have an average
    assert set(teacher_params(params | average)) == set(params)
    through = jax.jit(jax.grad(lambda p: teacher_logits(model, p, batch).sum()))(params | average)
    assert not any(np.asarray(g).any() for g in through.values())
    student = logits_of(model, params, batch, None)
    teacher = logits_of(model, teacher_params(params | average), batch, None)
    divergence, labelled, _ = by_hand(batch, teacher, student)
    for loss, expected in (
        (Consistency(model, Identity(), 0.5, 0.6), divergence),
        (PseudoLabel(model, Identity(), threshold=0.6), labelled),
    ):
        (total, _), gradient = with_gradient(loss, params | average, batch, None)
        np.testing.assert_allclose(float(total), expected, rtol=1e-4)
        assert not np.asarray(gradient[PREFIX + "classifier.kernel"]).any()
        assert np.asarray(gradient["classifier.kernel"]).any()


# ---- augmentations

AUGMENTATIONS = {
    "identity": Identity(),
    "remove": TokenDropout(SPECIAL, 0.4, pad_token_id=PAD),
    "remove-all": TokenDropout(SPECIAL, 1.0, pad_token_id=PAD),
    "mask": TokenDropout(SPECIAL, 0.4, mask_token_id=MASK),
    "span": SpanDeletion(SPECIAL, 0.5, pad_token_id=PAD),
    "span-all": SpanDeletion(SPECIAL, 1.0, pad_token_id=PAD),
    "swap": WordSwap(SPECIAL, 0.7),
}


@functools.partial(jax.jit, static_argnums=0)
def augmented(augmentation, batch, seeds):
    return augmentation(batch, seeds)


def text_batch(rng, length=12):
    """Rows such as [CLS] 7 9 [SEP] 8 [SEP] padded on the right, among them one that only fills."""
    ids, types, mask = (np.zeros((4, length), np.int32) for _ in range(3))
    for row in range(3):
        first, second = (rng.integers(5, 64, rng.integers(0, 5)) for _ in range(2))
        tokens = [CLS, *first, SEP, *second, SEP]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        types[row, len(first) + 2 : len(tokens)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": np.array([0, 1, -100, -100], np.int32),
        "example_ids": np.array([3, 9, 4, -1], np.int32),
    }


def is_subsequence(few, many):
    rest = iter(many)
    return all(item in rest for item in few)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31 - 1))
def test_augmentations_keep_special_tokens_and_a_consistent_mask(name, seed):
    rng = np.random.default_rng(seed)
    batch = text_batch(rng)
    seeds = jnp.asarray(rng.integers(0, 2**32, 4, dtype=np.uint32))
    found = jax.device_get(augmented(AUGMENTATIONS[name], batch, seeds))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert all(np.array_equal(found[key], batch[key]) for key in ("labels", "example_ids"))
    for row in range(4):
        n, m = batch["attention_mask"][row].sum(), found["attention_mask"][row].sum()
        old, new = batch["input_ids"][row, :n].tolist(), found["input_ids"][row, :m].tolist()
        assert found["attention_mask"][row].tolist() == [1] * m + [0] * (12 - m)
        assert found["input_ids"][row, m:].tolist() == found["token_type_ids"][row, m:].tolist() == [0] * (12 - m)
        assert [t for t in new if t in (CLS, SEP)] == [t for t in old if t in (CLS, SEP)]
        text, kept = ([t for t in tokens if t not in SPECIAL] for tokens in (old, new))
        assert bool(kept) == bool(text)
        if name in ("remove-all", "span-all"):
            assert len(kept) == min(1, len(text))
        if name == "mask":
            assert all(b in (a, MASK) and (b == a or a not in SPECIAL) for a, b in zip(old, new, strict=True))
        elif name == "swap":
            assert sorted(text) == sorted(kept)
            moved = np.flatnonzero(np.array(old) != np.array(new))
            assert all(old[i] in new[max(0, i - 1) : i + 2] for i in moved)
        else:
            types = [list(x["token_type_ids"][row]) for x in (found, batch)]
            assert is_subsequence(list(zip(new, types[0])), list(zip(old, types[1])))
            assert name != "identity" or new == old

    wider = augmented(AUGMENTATIONS[name], padded(batch, rows=0), seeds)
    order = rng.permutation(4)
    shuffled = augmented(AUGMENTATIONS[name], {key: value[order] for key, value in batch.items()}, seeds[order])
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(np.asarray(wider[key])[:, :12], found[key])
        assert not np.asarray(wider[key])[:, 12:].any()
        assert np.array_equal(np.asarray(shuffled[key]), found[key][order])


def test_compact_by_hand():
    batch = {
        "input_ids": jnp.array([[1, 7, 8, 9, 2, 0]], jnp.int32),
        "attention_mask": jnp.array([[1, 1, 1, 1, 1, 0]], jnp.int32),
        "token_type_ids": jnp.array([[0, 0, 0, 1, 1, 0]], jnp.int32),
    }
    found = compact(batch, jnp.array([[True, False, True, True, True, False]]), pad_token_id=5)
    assert {name: value.tolist() for name, value in found.items()} == {
        "input_ids": [[1, 8, 9, 2, 5, 5]],
        "attention_mask": [[1, 1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 1, 1, 0, 0]],
    }


def test_the_rates_of_the_augmentations_over_many_rows():
    text = jnp.ones((2048, 20), bool).at[:, 0].set(False)
    seeds = example_seeds(jax.random.key(0), jnp.arange(2048))
    assert abs(float(dropped_tokens(text, seeds, 0.2).mean()) * 20 / 19 - 0.2) < 0.01
    spans = np.asarray(deleted_span(text, seeds, 0.2))
    assert set(spans.sum(-1).tolist()) == {4}
    starts = spans.argmax(-1)
    assert set(np.unique(starts).tolist()) == set(range(1, 17))  # every place a span of 4 has
    assert np.ptp(np.bincount(starts, minlength=17)[1:]) < 100
    assert all(spans[row, start : start + 4].all() for row, start in enumerate(starts))
    moved = np.asarray(swapped_neighbours(text, seeds, 0.3)) != np.arange(20)
    assert not moved[:, 0].any()
    assert abs(moved[:, 2:-1].mean() - 0.3) < 0.02


# ---- coefficients over the run


def test_weights_over_the_run():
    assert parse_weight("0.1") == Weight(0.1, 0.1)
    assert parse_weight("linear:0->1") == Weight(0.0, 1.0)
    assert parse_weight(" linear: 1e-1 -> 0 ") == Weight(0.1, 0.0)
    line = jax.jit(over(parse_weight("linear:0.5->0.1"), 100))
    np.testing.assert_allclose([float(line(step)) for step in (0, 25, 100, 200)], [0.5, 0.4, 0.1, 0.1], rtol=1e-6)
    assert line(jnp.int32(50)).dtype == jnp.float32
    assert over(parse_weight("0.1"), 100) == 0.1
    assert parse_weight("0").is_zero
    assert not parse_weight("linear:0->1").is_zero


NO_WEIGHTS = ["-0.1", "nan", "inf", "1e39", "", "much", "0.1,0.2", "0->1", "linear", "cosine:0->1", ":0->1", "0.1:"]
NO_WEIGHTS += [f"linear:{ends}" for ends in ("0", "0->", "0->-1", "nan->1", "0->inf", "0->1->2")]


@pytest.mark.parametrize("text", NO_WEIGHTS)
def test_weights_that_are_none(text):
    with pytest.raises(InputError) as error:
        parse_weight(text)
    assert str(error.value).startswith(f"--self-supervised-weight {text!r}: must be")
    assert "\n" not in str(error.value)
