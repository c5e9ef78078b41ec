"""The attention kernels that read what dense layers write, interpreted, against the reference that all else is held to."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_params
from decoders import FAMILIES

from ftjax.models import CONFIGS, build, flash, splash
from ftjax.models.decoder import causal
from ftjax.models.flash import Shape, fits, flash_attention, of_head
from ftjax.models.rope import Rope, rotate
from ftjax.models.splash import SHORTEST

ROWS = 2


def reference(query, key, value, rotation, segments, window, scale):
    """Spelled out."""
    length, size = query.shape[1], query.shape[3]
    if rotation is not None:
        query, key = rotate(query, rotation), rotate(key, rotation)
    query = query.reshape(ROWS, length, key.shape[2], -1, size)
    scores = jnp.einsum("bqngd,bknd->bngqk", query, key) * scale
    seen = causal(0, length, jnp.ones((ROWS, length)), window) & (segments[:, :, None] == segments[:, None, :])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("bngqk,bknd->bqngd", weights, value).reshape(ROWS, length, -1, size)


def drawn(length, heads, key_value_heads, size):
    """Queries, keys, values and what gradients come with; segments of two rows, the second with padding at its end; angles."""
    keys = jax.random.split(jax.random.key(0), 4)
    numbers = (heads, key_value_heads, key_value_heads, heads)
    arrays = [jax.random.normal(key, (ROWS, length, n, size)) for key, n in zip(keys, numbers, strict=True)]
    segments = np.ones((ROWS, length), np.int32)
    segments[:, length // 2 - 7 :] = 2
    segments[1, -31:] = 0
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32) % 100, (ROWS, length))
    return arrays, jnp.asarray(segments), Rope().rotation(positions, size)


CASES = {
    "four queries a key, as Llama 3": (256, 8, 2, 64, None),
    "two, of which a slab sees one key": (256, 4, 2, 64, None),
    "a key for every query, as GPT-2": (256, 2, 2, 64, None),
    "a head that fills a slab": (384, 4, 2, 128, None),
    "a head of two": (256, 2, 1, 256, None),
    "a window within a tile": (384, 4, 2, 64, 50),
    "a window over tiles, of which some are not seen": (640, 4, 2, 64, 200),
    "a window that ends where a tile does": (384, 2, 1, 128, 129),
}


@pytest.mark.parametrize(("case", "turned"), [*((case, True) for case in CASES), (next(iter(CASES)), False)])
def test_the_kernels_and_their_gradients_equal_the_reference(case, turned, monkeypatch):
    length, heads, key_value_heads, size, window = CASES[case]
    assert fits(512, size, heads, key_value_heads)
    monkeypatch.setattr("ftjax.models.flash.EDGE", 128)  # several tiles
    (*arrays, wanted), segments, rotation = drawn(length, heads, key_value_heads, size)
    options = {"window": window, "scale": size**-0.5}

    def kernels(*arrays):
        return flash_attention(*arrays, rotation if turned else None, segments, **options, interpret=True)

    def spelled_out(*arrays):
        return reference(*arrays, rotation if turned else None, segments, **options)

    (found, back), (right, other) = (jax.vjp(f, *arrays) for f in (kernels, spelled_out))
    for one, two in zip((found, *back(wanted)), (right, *other(wanted)), strict=True):
        np.testing.assert_allclose(one, two, atol=3e-5)


def test_in_bfloat16_they_err_no_more_than_the_reference_does():
    (*arrays, wanted), segments, rotation = drawn(512, 8, 2, 64)
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    options = {"window": None, "scale": 0.125}
    exact, back = jax.vjp(lambda *a: reference(*a, rotation, segments, **options), *(x.astype(jnp.float32) for x in narrow))
    found, other = jax.vjp(lambda *a: flash_attention(*a, rotation, segments, **options, interpret=True), *narrow)
    assert found.dtype == jnp.bfloat16
    for one, two in zip((found, *other(wanted.astype(found.dtype))), (exact, *back(wanted)), strict=True):
        one, two = np.asarray(one, np.float32), np.asarray(two)
        assert np.abs(one - two).mean() < 2**-8 * np.abs(two).mean() * 2, np.abs(one - two).mean() / np.abs(two).mean()


def test_every_tile_that_is_seen_is_listed_once_and_no_other():
    for length, window in ((2048, None), (1024, 130), (1024, 129), (1024, 128), (1024, 1), (128, None)):
        shape = Shape(64, window, 128, True)
        seen = np.asarray(causal(0, length, jnp.ones((1, length)), window))[0]
        tiles = seen.reshape(length // 128, 128, length // 128, 128).any((1, 3))
        for by_query in (True, False):
            rows, columns, first, last = shape.tiles(length, by_query=by_query)
            assert {*zip(rows.tolist(), columns.tolist(), strict=True)} == {*map(tuple, np.argwhere(tiles).tolist())}
            assert len(rows) == tiles.sum()
            outer = rows if by_query else columns
            assert (np.diff(outer) >= 0).all()
            if by_query:
                assert first.sum() == last.sum() == length // 128
                assert (first[1:] == (np.diff(rows) > 0)).all() and first[0] and last[-1]


DECODERS = {
    "llama": ("llama", 4, 2, 64, False, "flash"),
    "llama, layers as a loop": ("llama", 4, 2, 64, True, "flash"),
    "gpt2": ("gpt2", 2, 2, 64, False, "flash"),
    "mistral": ("mistral", 4, 2, 64, False, "flash"),
    "qwen3": ("qwen3", 2, 1, 128, False, "flash"),
    "gemma3": ("gemma3", 2, 1, 256, False, "flash"),
    "gemma2, which caps scores": ("gemma2", 2, 1, 64, False, "splash"),
    "llama, half a slab of keys": ("llama", 2, 1, 64, False, "splash"),
    "the same, layers as a loop": ("llama", 2, 1, 64, True, "splash"),
}
"""Case -> (family, heads, key-value heads, their size, as a loop, which kernel)."""


@pytest.mark.parametrize("case", DECODERS)
def test_a_decoder_with_kernels_says_what_it_says_without(case, monkeypatch):
    name, heads, key_value_heads, size, scan, kernel = DECODERS[case]
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": SHORTEST, "sliding_window": 100, "head_dim": size}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": key_value_heads, "query_pre_attn_scalar": size}
    if name == "gpt2":
        sizes = {"n_layer": 2, "n_positions": SHORTEST, "n_head": heads, "n_embd": heads * size}
    raw = FAMILIES[name] | sizes
    plain = build(CONFIGS[raw["model_type"]].from_dict(raw, "config.json"), causal_lm=True, scan=scan)
    fused = dataclasses.replace(plain, attention="interpreted")
    params = random_params(plain, scale=0.2)
    ids = jax.random.randint(jax.random.key(0), (1, SHORTEST), 3, 96)
    segments = jnp.where(jnp.arange(SHORTEST) < 300, 1, 2)[None].astype(jnp.int32)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "segment_ids": segments}
    taken = []
    for module, function in ((flash, "flash_attention"), (splash, "splash_attention")):
        real = getattr(module, function)
        spy = lambda *args, real=real, word=function, **options: taken.append(word) or real(*args, **options)  # noqa: E731
        monkeypatch.setattr(module, function, spy)

    def hidden(model, params):
        return model.bind(params).hidden_states(batch)[-1]

    found, right = (np.asarray(hidden(model, params)) for model in (fused, plain))
    assert {*taken} == {f"{kernel}_attention"}
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())
    one, other = (jax.grad(lambda p, m=model: (hidden(m, p) ** 2).mean())(params) for model in (fused, plain))
    for key in one:
        # what adds the same to all scores has a gradient of rounding alone
        same_for_all = name == "gpt2" and key.endswith("key.bias")
        scale = float(jnp.abs(other[key.replace("bias", "kernel") if same_for_all else key]).max())
        np.testing.assert_allclose(one[key], other[key], atol=1e-4 * scale, err_msg=key)


def test_what_they_fit():
    assert fits(2048, 64, 32, 8) and fits(512, 128, 8, 8) and fits(1024, 256, 4, 1) and fits(2048, 64, 12, 12)
    assert not fits(2048, 64, 9, 3)  # SmolLM2: half a slab is left over
    assert not fits(2048, 64, 12, 4)  # a slab would see two of the keys' heads, one of them next to another's
    assert not fits(2048, 80, 8, 8) and not fits(384, 64, 8, 2) and not fits(2000, 64, 8, 2) and not fits(8192, 64, 8, 2)
    assert fits(4096, 128, 8, 8) and not fits(4096, 256, 4, 4)


def test_a_product_by_ones_sums_every_head_exactly_enough():
    x = jax.random.normal(jax.random.key(0), (64, 128))
    found = of_head(x, Shape(64, None, 128, True), jnp.dtype(jnp.bfloat16))
    right = np.asarray(x, np.float64).reshape(64, 2, 64).sum(-1).T
    assert found.shape == (8, 64)
    np.testing.assert_allclose(found[:2], right, atol=64 * 4 * 2.0**-17)
    assert math.isclose(float(jnp.abs(found[2:]).max()), 0.0)
