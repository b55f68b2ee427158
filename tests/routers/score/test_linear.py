"""The linear scorer by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.score.linear import Linear
from tests.contracts import tiny

W_DE = jnp.array([[0.0, np.log(3.0)]])


@pytest.mark.parametrize(("activation", "want"), [("softmax", [0.25, 0.75]), ("sigmoid", [0.5, 0.75])])
def test_one_token_two_experts(activation, want):
    """x = 1: logits (0, log 3)."""
    i = tiny.route_in(np.ones((1, 1, 1), np.float32), tiny.document([[0]]))
    logit_BTE, score_BTE, memory = Linear(activation).score({"w": W_DE}, i)
    np.testing.assert_allclose(logit_BTE[0, 0], W_DE[0], rtol=1e-6)
    np.testing.assert_allclose(score_BTE[0, 0], want, rtol=1e-6)
    assert memory is i.memory


def test_scores_are_float32_for_bfloat16_activations():
    i = tiny.route_in(jnp.ones((1, 1, 1), jnp.bfloat16), tiny.document([[0]]))
    assert all(x.dtype == jnp.float32 for x in Linear().score({"w": W_DE}, i)[:2])


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match=r"activation='relu' is not one of softmax, sigmoid"):
        Linear("relu")
