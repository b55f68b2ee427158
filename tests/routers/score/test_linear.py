"""The linear scorer by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.score.linear import Linear
from tests.contracts import tiny

W_DE = jnp.array([[0.0, np.log(3.0)]])
ONE = tiny.route_in(np.ones((1, 1, 1), np.float32), tiny.document([[0]]))


@pytest.mark.parametrize(
    ("activation", "want"),
    [
        ("softmax", [0.25, 0.75]),
        ("sigmoid", [0.5, 0.75]),
        ("sqrt_softplus", [np.log(2) ** 0.5, np.log(4) ** 0.5]),
    ],
)
def test_one_token_two_experts(activation, want):
    """x = 1: logits (0, log 3)."""
    logit_BTE, score_BTE, memory = Linear(activation).score({"w": W_DE}, ONE)
    np.testing.assert_allclose(logit_BTE[0, 0], W_DE[0], rtol=1e-6)
    np.testing.assert_allclose(score_BTE[0, 0], want, rtol=1e-6)
    assert memory is ONE.memory


def test_the_bias_is_added_to_the_logits():
    """Logits (log 3, log 3)."""
    p = {"w": W_DE, "b": jnp.array([np.log(3.0), 0.0])}
    np.testing.assert_allclose(Linear(bias=True).score(p, ONE)[1][0, 0], [0.5, 0.5], rtol=1e-6)


def test_noise_needs_a_key_and_is_divided_by_the_number_of_experts():
    """Fifty thousand logits of log 3 with noise 0.4: standard deviation 0.2."""
    i = tiny.route_in(np.ones((5, 10_000, 1), np.float32), tiny.document(np.zeros((5, 10_000))))
    scorer = Linear(noise=0.4)
    assert (scorer.score({"w": W_DE}, i)[0][..., 1] == W_DE[0, 1]).all()
    logit_BTE = scorer.score({"w": W_DE}, i.replace(key=jax.random.key(0)))[0]
    assert abs(np.std(logit_BTE[..., 1]) - 0.2) < 0.005
    assert abs(np.mean(logit_BTE[..., 1]) - np.log(3)) < 0.005


@pytest.mark.parametrize("x", [-1000.0, -41.0, -39.0, -1.0, 0.0, 50.0, 1000.0])
def test_the_slope_of_sqrt_softplus_is_that_of_the_formula(x):
    """slope = sigmoid(x) / (2 sqrt(softplus(x))), and exp(x / 2) / 2 far below zero."""
    run = lambda w_DE: Linear("sqrt_softplus").score({"w": w_DE}, ONE)[1].sum()
    value, slope = jax.value_and_grad(run)(jnp.full((1, 1), x, jnp.float32))
    root = np.exp(x / 2) if x < -30 else np.sqrt(np.logaddexp(x, 0))
    np.testing.assert_allclose(value, root, rtol=1e-6, atol=1e-37)
    want = root / 2 if x < -30 else 1 / (1 + np.exp(-x)) / (2 * root)
    np.testing.assert_allclose(slope[0, 0], want, rtol=1e-6, atol=1e-37)


def test_scores_are_float32_for_bfloat16_activations():
    i = tiny.route_in(jnp.ones((1, 1, 1), jnp.bfloat16), tiny.document([[0]]))
    assert all(x.dtype == jnp.float32 for x in Linear().score({"w": W_DE}, i)[:2])


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"activation='tanh' is not one of softmax, sigmoid, sqrt_softplus"):
        Linear("tanh")
    with pytest.raises(UsageError, match=r"scorer.noise=-1 must not be negative"):
        Linear(noise=-1)
