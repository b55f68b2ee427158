"""Top-k by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.select.top_k import TopK

SCORE = jnp.array([[[0.5, 0.2, 0.3]]])
YES = jnp.ones((1, 1), bool)


def select(selector, choice=SCORE, valid_BT=YES):
    expert_BTK, gate_BTK, _ = selector.select({}, SCORE, choice, valid_BT, None)
    return expert_BTK[0, 0].tolist(), gate_BTK[0, 0]


@pytest.mark.parametrize(
    ("selector", "gates"),
    [
        (TopK(2), [0.625, 0.375]),
        (TopK(2, renormalise=False), [0.5, 0.3]),
        (TopK(2, scale=2.0), [1.25, 0.75]),
        (TopK(2, renormalise=False, scale=2.0), [1.0, 0.6]),
    ],
)
def test_three_experts_by_hand(selector, gates):
    """Scores (0.5, 0.2, 0.3): experts 0 and 2, best first."""
    experts, got = select(selector)
    assert experts == [0, 2]
    np.testing.assert_allclose(got, gates, rtol=1e-6)


def test_the_choice_decides_who_and_the_score_how_much():
    """A preference for expert 1 lets it in with its own small score."""
    experts, gates = select(TopK(2), choice=SCORE + jnp.array([[[0.0, 9.0, 0.0]]]))
    assert experts == [1, 0]
    np.testing.assert_allclose(gates, [0.2 / 0.7, 0.5 / 0.7], rtol=1e-6)


def test_fewer_allowed_experts_than_slots_leave_empty_slots():
    experts, gates = select(TopK(2), choice=jnp.array([[[-jnp.inf, 0.2, -jnp.inf]]]))
    assert experts == [1, 3]
    np.testing.assert_allclose(gates, [1, 0])


def test_an_absent_token_goes_nowhere():
    experts, gates = select(TopK(2), valid_BT=~YES)
    assert experts == [3, 3]
    np.testing.assert_array_equal(gates, [0, 0])


def test_a_constant_sum_gives_the_same_gates_and_lets_the_others_compete():
    """With softmax scores and scale k, the slopes of the plain gates add to 0 over the chosen experts."""

    def total(logit_E, selector):
        score_BTE = jax.nn.softmax(logit_E)[None, None]
        gate_BTK = selector.select({}, score_BTE, score_BTE, YES, None)[1]
        return gate_BTK[0, 0, 0], gate_BTK[0, 0]

    logit_E = jnp.log(SCORE[0, 0])
    slope = lambda selector: jax.grad(total, has_aux=True)(logit_E, selector)
    plain_E, gates = slope(TopK(2, scale=2.0))
    free_E, same_gates = slope(TopK(2, scale=2.0, stop_gradient=True))
    np.testing.assert_allclose(same_gates, gates, rtol=1e-6)
    # d (2 p0 / (p0 + p2)) = 2 * 0.625 * 0.375; with a constant sum 0.8: 2 / 0.8 * p0 (delta - p)
    np.testing.assert_allclose(plain_E, [0.46875, 0, -0.46875], atol=1e-6)
    np.testing.assert_allclose(free_E, [0.625, -0.25, -0.375], atol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.k=0 must be at least 1"):
        TopK(0)
    with pytest.raises(UsageError, match=r"selector.stop_gradient=True needs selector.renormalise=True"):
        TopK(2, renormalise=False, stop_gradient=True)
