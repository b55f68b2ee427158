"""The cosine router by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.score.cosine import Cosine
from tests.contracts import tiny

# Projected token (3, 4); experts (1, 0), (0, 1), (1, 1).
PARAMS = {"project": jnp.eye(2), "expert": jnp.array([[1.0, 0, 1], [0, 1, 1]])}
TOKEN_BTD = np.array([[[3, 4]]], np.float32)


def score(scorer, x_BTD=TOKEN_BTD, log_factor=None, **changes):
    if log_factor is None:
        log_factor = scorer.specs(tiny.model(width=2), 3)["log_factor"].init.value
    p = PARAMS | {"log_factor": jnp.float32(log_factor)} | changes
    logit_BTE, score_BTE, _ = scorer.score(p, tiny.route_in(x_BTD, tiny.document([[0]])))
    return logit_BTE[0, 0], score_BTE[0, 0]


@pytest.mark.parametrize(
    ("temperature", "want"), [(0.07, [0.0036, 0.0620, 0.9345]), (0.5, [0.2140, 0.3192, 0.4668])]
)
def test_published_scores(temperature, want):
    logit_E, score_E = score(Cosine(2, temperature))
    np.testing.assert_allclose(logit_E * temperature, [0.6, 0.8, 0.98995], rtol=1e-5)
    np.testing.assert_allclose(score_E, want, atol=6e-5)


@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
def test_the_length_of_a_token_changes_nothing(scale):
    np.testing.assert_allclose(
        score(Cosine(2), TOKEN_BTD * np.float32(scale))[1], score(Cosine(2))[1], rtol=1e-5
    )


def test_the_factor_stops_at_one_hundred():
    np.testing.assert_allclose(score(Cosine(2), log_factor=9.0)[0], [60, 80, 98.995], rtol=1e-5)


def test_the_bias_is_added_before_the_length_is_taken_away():
    """(3, 4) - (3, 0) = (0, 4): cosines 0, 1, 1/sqrt(2)."""
    scorer = Cosine(2, temperature=1.0, bias=True)
    np.testing.assert_allclose(score(scorer, b=jnp.array([-3.0, 0]))[0], [0, 1, 0.5**0.5], atol=1e-6)


def test_a_zero_token_wants_every_expert_alike():
    np.testing.assert_allclose(score(Cosine(2), TOKEN_BTD * 0)[1], 1 / 3, rtol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"scorer.width=0 must be at least 1"):
        Cosine(0)
    with pytest.raises(UsageError, match=r"scorer.temperature=0.001 must be at least 0.01"):
        Cosine(2, 0.001)
