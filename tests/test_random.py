import jax
import jax.numpy as jnp
import numpy as np

from ftjax.random import bits, dropout, example_seeds, fold_in, mix, uniform


def test_mix_is_a_bijection_on_a_sample():
    x = jnp.arange(200_000, dtype=jnp.uint32)
    assert len(np.unique(np.asarray(mix(x)))) == len(x)


def test_every_output_bit_is_fair_and_every_input_bit_flips_half_of_them():
    seeds = example_seeds(jax.random.key(0), jnp.arange(64))
    sample = np.asarray(bits(seeds, (1024,)))
    ones = np.unpackbits(sample.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 1e-3
    for bit in range(0, 32, 5):
        flipped = np.asarray(bits(seeds ^ jnp.uint32(1 << bit), (1024,))) ^ sample
        assert abs(np.unpackbits(flipped.view(np.uint8)).mean() - 0.5) < 2e-3


def test_uniform_has_the_moments_of_a_uniform_and_no_correlation_between_examples():
    u = np.asarray(uniform(example_seeds(jax.random.key(1), jnp.arange(64)), (4096,)))
    assert abs(u.mean() - 0.5) < 2e-3
    assert abs(u.var() - 1 / 12) < 1e-3
    correlation = np.corrcoef(u)
    assert np.abs(correlation - np.eye(64)).max() < 0.08
    assert np.abs(np.corrcoef(u[:, 1:].ravel(), u[:, :-1].ravel())[0, 1]) < 0.01


def test_dropout_keeps_the_mean_and_drops_the_rate():
    seeds = example_seeds(jax.random.key(2), jnp.arange(16))
    y = np.asarray(dropout(jnp.ones((16, 64, 64)), 0.1, seeds))
    assert abs((y == 0).mean() - 0.1) < 3e-3
    assert abs(y.mean() - 1) < 4e-3
    assert np.array_equal(np.asarray(dropout(jnp.ones((16, 4)), 0.1, None)), np.ones((16, 4)))


def test_masks_differ_over_steps_examples_and_uses():
    ids = jnp.arange(4)
    first, second = (example_seeds(jax.random.fold_in(jax.random.key(0), step), ids) for step in (0, 1))
    rows = np.asarray(bits(jnp.concatenate([first, second, fold_in(first, 0), fold_in(first, 1)]), (256,)) >> 31)
    agreement = (rows[:, None] == rows[None]).mean(-1) - np.eye(len(rows)) * 0.5
    assert np.abs(agreement - 0.5).max() < 0.2


def test_an_examples_mask_does_not_depend_on_its_batch_or_padding():
    key = jax.random.key(3)
    together = dropout(jnp.ones((4, 8, 6)), 0.5, example_seeds(key, jnp.array([7, 8, 9, -1])))
    alone = dropout(jnp.ones((1, 5, 6)), 0.5, example_seeds(key, jnp.array([8])))
    assert np.array_equal(np.asarray(together[1, :5]), np.asarray(alone[0]))
