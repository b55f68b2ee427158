"""SparseMixer by hand, and against the mask and softmax of a loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.sparse_mixer import SparseMixer
from moejax.routers.select.top_k import TopK


def select(selector, logit_NE, choice_NE=None):
    logit_1NE = jnp.asarray(logit_NE)[None]
    choice_1NE = logit_1NE if choice_NE is None else jnp.asarray(choice_NE)[None]
    valid_1N = jnp.ones(logit_1NE.shape[:2], bool)
    expert_1NK, gate_1NK, _ = selector.select({}, logit_1NE, choice_1NE, valid_1N, None)
    return np.asarray(expert_1NK[0]), np.asarray(gate_1NK[0])


def test_three_tokens_by_hand():
    """Near the best 2 is what lacks at most 2 * 0.01 * 2 = 0.04; the second choice looks at what is left.

    The best of token 1 is alone, of the others -1.01 is near -1; token 2 has negative logits only.
    """
    logit_NE = np.array(
        [[2.0, 1.97, 1.0, -3.0], [5.0, -1.0, -1.01, -1.5], [-9.0, -4.0, -4.05, -4.2]], np.float32
    )
    expert_NK, gate_NK = select(SparseMixer(2), logit_NE)
    np.testing.assert_array_equal(expert_NK, [[0, 1], [0, 1], [1, 2]])
    share = lambda lack: 1 / (1 + np.exp(-lack))
    np.testing.assert_allclose(gate_NK, [[share(0.03), 1], [1, share(0.01)], [share(0.05), 1]], rtol=1e-6)


def test_equals_a_loop_over_tokens():
    logit_NE = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    expert_NK, gate_NK = select(SparseMixer(3, jitter=0.2), logit_NE)
    for s_E, experts, gates in zip(logit_NE, expert_NK, gate_NK, strict=True):
        left = list(range(6))
        for expert, gate in zip(experts, gates, strict=True):
            best = max(left, key=lambda e: s_E[e])
            near = [e for e in left if (s_E[best] - s_E[e]) / max(abs(s_E[e]), s_E[best]) <= 0.4]
            assert expert == best
            np.testing.assert_allclose(gate, 1 / np.exp(s_E[near] - s_E[best]).sum(), rtol=1e-5)
            left.remove(best)


def test_a_token_with_one_allowed_expert_has_one_slot():
    expert_NK, gate_NK = select(SparseMixer(2), [[1.0, 2.0]], [[1.0, -np.inf]])
    np.testing.assert_array_equal(expert_NK, [[0, 2]])
    np.testing.assert_array_equal(gate_NK, [[1, 0]])


def test_logits_and_scores_are_not_mixed_up():
    with pytest.raises(UsageError, match=r"gives scores that are not negative, but ffn.selector=SparseMixer"):
        Moe(4, 8, Linear(), SparseMixer(2), Local())
    with pytest.raises(UsageError, match=r"gives logits, but ffn.selector=TopK works on scores"):
        Moe(4, 8, Linear("identity"), TopK(2), Local())
    with pytest.raises(UsageError, match=r"selector.jitter=-1 must not be negative"):
        SparseMixer(2, jitter=-1)
