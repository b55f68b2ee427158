"""TLS, CLS and reuse by the numbers of the paper's definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis.routing import sparsity

# relu of [[1, -.5, .2, -.1], [.8, .3, -.4, -.2], [-.1, .6, .5, -.3], [.9, -.2, .1, -.4]]
MASK = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]], bool)
ONE_TEXT = [slice(0, 4)]


def test_by_hand():
    assert sparsity.token_sparsity(MASK) == 0.5
    assert [sparsity.chunk_sparsity(MASK, ONE_TEXT, length) for length in (1, 2, 4)] == [0.5, 0.25, 0.25]
    assert sparsity.reuse(MASK, np.zeros(4)) == 0.5
    assert np.isnan(sparsity.chunk_sparsity(MASK, ONE_TEXT, 5))


def test_texts_end_chunks_and_pairs():
    texts = [slice(0, 1), slice(1, 4)]
    assert sparsity.chunk_sparsity(MASK, texts, 2) == 0.25  # tokens 1 and 2
    assert sparsity.reuse(MASK, np.array([0, 1, 2, 2])) == 0.5  # tokens 2 and 3
    assert np.isnan(sparsity.reuse(MASK, np.arange(4)))


def test_tokens_without_experts():
    mask = np.array([[0, 0], [1, 0], [1, 0]], bool)
    assert sparsity.reuse(mask, np.zeros(3)) == 1.0


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_longer_chunks_are_less_sparse(seed, length):
    mask = np.random.default_rng(seed).random((12, 5)) < 0.3
    own = [slice(0, 12)]
    values = [sparsity.chunk_sparsity(mask, own, n) for n in (1, 2, 4, 12)]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values[0], sparsity.token_sparsity(mask))
    loop = [mask[i : i + length].any(axis=0).mean() for i in range(0, 12 - length + 1, length)]
    np.testing.assert_allclose(sparsity.chunk_sparsity(mask, own, length), 1 - np.mean(loop))


def test_independent_routing_is_the_limit():
    expert_NK = np.argsort(np.random.default_rng(0).random((40_000, 8)), axis=1)[:, :2]
    mask = (expert_NK[..., None] == np.arange(8)).any(axis=1)
    want = sparsity.chunk_sparsity_iid(8, 2, 4)
    assert abs(sparsity.chunk_sparsity(mask, [slice(0, 40_000)], 4) - want) < 5e-3
    assert abs(sparsity.reuse(mask, np.zeros(40_000)) - 2 / 8) < 5e-3
