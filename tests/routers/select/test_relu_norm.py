"""ReLU and RMSNorm by hand, on the four tokens of the paper's brief."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.select.relu_norm import ReluNorm
from tests.routers.select.by_hand import select, weights

LOGIT = np.array(
    [[1, -0.5, 0.2, -0.1], [0.8, 0.3, -0.4, -0.2], [-0.1, 0.6, 0.5, -0.3], [0.9, -0.2, 0.1, -0.4]]
)
SCORE = np.maximum(LOGIT, 0)
ONES = {"scale": jnp.ones(4)}


def test_four_tokens_by_hand():
    """Row 0: mean square (1 + 0.04) / 4 = 0.26, so 1 becomes 1 / sqrt(0.26) = 1.9611."""
    weight_TE = weights(ReluNorm(4), SCORE, p=ONES)
    np.testing.assert_allclose(weight_TE[0], [1.9611, 0, 0.3922, 0], atol=5e-5)
    np.testing.assert_allclose(weight_TE[2], [0, 1.5364, 1.2803, 0], atol=5e-5)
    assert select(ReluNorm(4), SCORE, p=ONES)[0] == [[0, 2, 4, 4], [0, 1, 4, 4], [1, 2, 4, 4], [0, 2, 4, 4]]


def test_logits_and_their_positive_parts_are_the_same_scores():
    np.testing.assert_array_equal(weights(ReluNorm(4), LOGIT, p=ONES), weights(ReluNorm(4), SCORE, p=ONES))


def test_only_relative_sizes_matter_and_the_scale_is_per_expert():
    weight_TE = weights(ReluNorm(4), SCORE, p=ONES)
    np.testing.assert_allclose(weights(ReluNorm(4), 7 * SCORE, p=ONES), weight_TE, rtol=1e-4)
    scale_E = jnp.array([1.0, 2.0, -3.0, 1.0])  # a negative scale leaves an expert active
    np.testing.assert_allclose(weights(ReluNorm(4), SCORE, p={"scale": scale_E}), weight_TE * scale_E[None])


@pytest.mark.parametrize(("active", "gate"), [(1, 6.928), (10, 2.191)])
def test_equally_active_experts_weigh_the_root_of_their_share(active, gate):
    """sqrt(E / n): 1 or 10 of 48."""
    score = [[10.0] * active + [0.0] * (48 - active)]
    _, (gates,), _ = select(ReluNorm(48), score, p={"scale": jnp.ones(48)})
    np.testing.assert_allclose(gates[:active], gate, atol=1e-3)


def test_a_token_that_wants_nothing_goes_nowhere_and_has_finite_slopes():
    experts, gates, _ = select(ReluNorm(4), np.zeros((1, 4)), p=ONES)
    assert experts == [[4] * 4]
    assert not gates.any()

    def total(score_BTE):
        return jnp.sum(ReluNorm(4).select(ONES, score_BTE, score_BTE, jnp.ones((1, 1), bool), None)[1])

    assert np.isfinite(jax.grad(total)(jnp.zeros((1, 1, 4)))).all()


def test_fewer_slots_keep_the_best():
    """With the weights that they have among all."""
    assert select(ReluNorm(1), SCORE, p=ONES)[0] == [[0], [0], [1], [0]]
    np.testing.assert_allclose(select(ReluNorm(1), SCORE, p=ONES)[1][0], [1.9611], atol=5e-5)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.k=0 must be at least 1"):
        ReluNorm(0)
    with pytest.raises(UsageError, match=r"selector.eps=0 must be positive"):
        ReluNorm(4, eps=0)
