"""Utilities that can be worked out by hand, and what they may not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.surgery.score.base import Seen
from moejax.surgery.score.expert_utility import TRANSFORMS, ExpertUtility, LargestShare, Utility
from tests.contracts import tiny

LOGIT_NE = np.array([[3, 1, -1, 0], [-0.5, -2, -1, -3], [0.2, 2.2, 0, -1]], np.float32)
M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE))


def seen(logit_NE=LOGIT_NE, slots=2):
    N = len(logit_NE)
    return Seen(jnp.asarray(logit_NE), jnp.zeros((N, slots), int), jnp.zeros((N, slots)), jnp.ones(N, bool))


def utility(of, threshold=None, logit_NE=LOGIT_NE):
    """The mean over tokens of one layer."""
    given = None if threshold is None else jnp.float32(threshold)
    return np.asarray(Utility(of)(seen(logit_NE), given)).mean(axis=0)


def test_by_hand():
    """Three tokens, four experts, two candidates: the second token's best falls below the threshold."""
    share_N = np.asarray(LargestShare(None)(seen(), None))
    np.testing.assert_allclose(share_N, [0.8808, 0.6225, 0.8808], atol=1e-4)
    np.testing.assert_allclose(share_N.mean(), 0.7947, atol=1e-4)
    np.testing.assert_allclose(utility(ExpertUtility(), share_N.mean()), [1.0, 0.7333, 0, 0], atol=1e-4)


def test_without_a_threshold():
    got_E = utility(ExpertUtility(threshold=0.0))
    np.testing.assert_allclose(got_E, [1.3091, 1.0667, 0.0896, 0], atol=1e-4)


def test_raw_logits_rank_an_expert_that_is_never_chosen_above_one_that_is():
    got_E = utility(ExpertUtility(threshold=0.0, transform="raw"))
    np.testing.assert_allclose(got_E, [0.9, 1.0667, -0.3333, 0], atol=1e-4)


def test_first_choices_alone():
    got_E = utility(ExpertUtility(candidates=1, threshold=0.0, transform="raw"))
    np.testing.assert_allclose(got_E, [0.8333, 0.7333, 0, 0], atol=1e-4)


def test_one_candidate_always_passes():
    assert (np.asarray(LargestShare(1)(seen(), None)) == 1).all()
    assert (utility(ExpertUtility(candidates=1), 1.0) == utility(ExpertUtility(candidates=1), 0.0)).all()


def test_the_transform_is_positive_and_the_logit_itself_from_its_crossing():
    f = TRANSFORMS["max_sigmoid"]
    assert f(0.0) == 0.5
    np.testing.assert_allclose(f(jnp.float32(0.6591)), 0.6591, rtol=1e-6)
    assert f(jnp.float32(0.6589)) > 0.6589
    assert (f(jnp.linspace(-20, 20, 9)) > 0).all()


def test_a_shift_of_the_logits_counts_unless_they_are_centred():
    shifted = LOGIT_NE + 1
    assert not np.allclose(utility(ExpertUtility(), 0.0), utility(ExpertUtility(), 0.0, shifted))
    centred = ExpertUtility(centred=True)
    np.testing.assert_allclose(utility(centred, 0.0), utility(centred, 0.0, shifted), rtol=1e-5)


def test_batching_order_and_padding_do_not_count():
    params = tiny.params(M)
    batch = tiny.batch(0, rows=4, padded=2)
    score = ExpertUtility()
    whole = score.score(params, M, [batch])
    first, second = jax.tree.map(lambda x: x[:2], batch), jax.tree.map(lambda x: x[2:], batch)
    tiny.close(score.score(params, M, [second, first]), whole, 1e-5)
    other = np.where(batch.valid_BT, batch.token_BT, 7).astype(np.int32)
    tiny.close(score.score(params, M, [batch.replace(token_BT=other)]), whole, 1e-6)


def test_a_threshold_of_its_own_per_layer():
    """The mean over tokens of every layer is what one layer at a time would give."""
    params, batch = tiny.params(M), tiny.batch(0)
    fixed = [ExpertUtility(threshold=t).score(params, M, [batch])[0][0] for t in (0.0, 1.1)]
    assert fixed[0].any() and not fixed[1].any()
    between = ExpertUtility().score(params, M, [batch])[0][0]
    assert between.shape == (2, 4)
    assert (between <= fixed[0] + 1e-6).all() and (between.sum(axis=1) > 0).all()


def test_refusals():
    with pytest.raises(UsageError, match="transform='cube' is not one of max_sigmoid, raw"):
        ExpertUtility(transform="cube")
    with pytest.raises(UsageError, match="candidates=0 must be at least 1"):
        ExpertUtility(candidates=0)
    with pytest.raises(UsageError, match="no token to score experts with"):
        ExpertUtility().score(tiny.params(M), M, [])
    dense = tiny.model(BlockConfig(tiny.ATTN, Dense(8)))
    with pytest.raises(UsageError, match="the model has no routers"):
        ExpertUtility().score(tiny.params(dense), dense, [tiny.batch(0)])
