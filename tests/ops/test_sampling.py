"""Sampling: hand-made distributions first, then what must hold for every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.ops.sampling import PART, TOP, SamplingRows, best, likelihoods, narrow, sample

SHARES = np.array([0.1, 0.4, 0.2, 0.3])
sample_jit = jax.jit(sample)


def rows(count, temperature=1.0, top_k=0, top_p=1.0, seeds=None, min_p=0.0):
    return SamplingRows(
        temperature_B=jnp.full(count, temperature, jnp.float32),
        top_k_B=jnp.full(count, top_k, jnp.int32),
        top_p_B=jnp.full(count, top_p, jnp.float32),
        seed_B=jnp.arange(count, dtype=jnp.uint32) if seeds is None else jnp.asarray(seeds, jnp.uint32),
        min_p_B=jnp.full(count, min_p, jnp.float32),
    )


def logits(count=1):
    return jnp.tile(jnp.log(jnp.asarray(SHARES, jnp.float32))[None], (count, 1))


def kept(top_k, top_p):
    found = narrow(logits(), jnp.array([top_k]), jnp.array([top_p], jnp.float32))
    return np.flatnonzero(np.isfinite(found[0])).tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "wanted"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [1]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3]),  # more than there are
        (0, 0.39, [1]),  # 0.4 reaches 0.39
        (0, 0.5, [1, 3]),  # 0.4 does not reach 0.5, 0.7 does
        (0, 0.75, [1, 2, 3]),
        (0, 1e-30, [1]),  # the first token always stays
        (2, 0.5, [1]),  # of the two, the first has 4/7
    ],
)
def test_narrow_worked_example(top_k, top_p, wanted):
    assert kept(top_k, top_p) == wanted


def test_temperature_zero_is_argmax():
    chosen = sample_jit(logits(3), rows(3, temperature=0.0), jnp.arange(3))
    np.testing.assert_array_equal(chosen, [1, 1, 1])


@pytest.mark.parametrize("vocab", [1, 7, PART, 3 * PART, 2 * 541])
def test_best_is_argmax(vocab):
    """Of a part, of many, of a number with few factors; with ties, and where nothing is likely."""
    x_BV = np.random.default_rng(vocab).integers(-3, 3, (50, vocab)).astype(np.float32)
    x_BV[0], x_BV[1], x_BV[1, -1] = -np.inf, -np.inf, -1
    np.testing.assert_array_equal(best(x_BV), x_BV.argmax(axis=1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    count = 20_000
    chosen = np.asarray(sample_jit(logits(count), rows(count, temperature), jnp.zeros(count, jnp.int32)))
    wanted = SHARES ** (1 / temperature) / np.sum(SHARES ** (1 / temperature))
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / count, wanted, atol=0.015)


def test_only_kept_tokens_are_drawn():
    chosen = sample_jit(logits(500), rows(500, top_k=2), jnp.zeros(500, jnp.int32))
    assert set(np.asarray(chosen).tolist()) == {1, 3}


@pytest.mark.parametrize(
    ("min_p", "temperature", "wanted"),
    [
        (0.6, 1.0, {1, 3}),  # of 0.4, 0.3 and 0.2, of which 0.24 is the least
        (0.4, 1.0, {1, 2, 3}),
        (0.4, 0.5, {1, 3}),  # the shares are those after temperature: (0.2 / 0.4)^2 < 0.4
        (1.0, 2.0, {1}),
    ],
)
def test_min_p_worked_example(min_p, temperature, wanted):
    settings = rows(500, temperature, min_p=min_p)
    assert set(np.asarray(sample_jit(logits(500), settings, jnp.zeros(500, jnp.int32))).tolist()) == wanted


def test_likelihoods_worked_example():
    found = jax.jit(likelihoods)(logits(2) + 7, jnp.array([0, 3]), True)
    np.testing.assert_allclose(np.exp(found.log_prob_B), [0.1, 0.3], rtol=1e-5)
    np.testing.assert_array_equal(found.top_token_BK, [[1, 3, 2, 0]] * 2)
    np.testing.assert_allclose(np.exp(found.top_log_prob_BK), [[0.4, 0.3, 0.2, 0.1]] * 2, rtol=1e-5)
    wide = likelihoods(jax.random.normal(jax.random.key(0), (1, 50)), jnp.array([0]), True)
    assert wide.top_token_BK.shape == (1, TOP)
    unwanted = jax.jit(likelihoods)(logits(2), jnp.array([0, 3]), False)
    assert not any(np.any(x) for x in jax.tree.leaves(unwanted))


def test_the_smallest_temperature_is_greedy():
    chosen = sample_jit(logits(50) * 1e4, rows(50, temperature=1e-38), jnp.zeros(50, jnp.int32))
    assert set(np.asarray(chosen).tolist()) == {1}


def test_noise_changes_with_seed_and_position():
    flat = jnp.zeros((64, 4096))
    at = jnp.arange(64, dtype=jnp.int32)
    same_seed = sample_jit(flat, rows(64, seeds=np.zeros(64)), at)
    same_pos = sample_jit(flat, rows(64), jnp.zeros(64, jnp.int32))
    assert len(set(np.asarray(same_seed).tolist())) > 60
    assert len(set(np.asarray(same_pos).tolist())) > 60


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 1000), st.sampled_from([0.0, 0.7, 2.0]), st.sampled_from([0, 5])
)
def test_a_row_does_not_depend_on_its_mates(seed, pos, temperature, top_k):
    own = rows(1, temperature, top_k, 1.0, [seed])
    mates = rows(2, 1.3, 0, 0.5, [1, 2])
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), own, mates)
    logits_BV = jax.random.normal(jax.random.key(seed), (3, 32))
    alone = sample_jit(logits_BV[:1], own, jnp.array([pos]))
    together = sample_jit(logits_BV, both, jnp.array([pos, 1, 2]))
    assert alone[0] == together[0]
