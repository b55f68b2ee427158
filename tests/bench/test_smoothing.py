"""Controls that mix router rows blindly: two tokens by hand, equal width, and nothing of the text in them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.bench.smoothing import (
    Blind,
    Recent,
    entropy_of_blind,
    entropy_of_recent,
    matched,
    row_entropy,
)
from moejax.seams import Mixing
from tests.contracts import oracles, tiny

E, D = 3, 8


def drawn(seed=0):
    """(parameters, input) of two packed rows."""
    rng = np.random.default_rng(seed)
    i = tiny.route_in(rng.standard_normal((2, 6, D)).astype(np.float32), tiny.batch(seed, 2, 6))
    return {"w": rng.standard_normal((D, E)).astype(np.float32)}, i


def test_the_last_two_tokens_by_hand():
    """Rows (.9, .1), (.5, .5), (.1, .9): the first stays, the others are means of neighbours."""
    row_TE = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], np.float32)
    i = tiny.route_in(np.log(row_TE)[None], tiny.document([[0, 1, 2]]))
    _, score_BTE, _ = Recent(window=2).score({"w": jnp.eye(2)}, i)
    np.testing.assert_allclose(score_BTE[0], [[0.9, 0.1], [0.7, 0.3], [0.3, 0.7]], atol=1e-6)


@pytest.mark.parametrize("scorer", [Recent(3), Blind(2.0)])
def test_rows_stay_distributions_and_only_own_rows_decide(scorer):
    p, i = drawn()
    logit_BTE, score_BTE, _ = jax.jit(scorer.score)(p, i)
    valid_BT = i.batch.valid_BT
    np.testing.assert_allclose(np.sum(score_BTE, -1)[valid_BT], 1, atol=1e-6)
    first_BT = (i.batch.pos_BT == 0) & valid_BT
    np.testing.assert_allclose(score_BTE[first_BT], oracles.softmax(logit_BTE)[first_BT], rtol=1e-5)


def test_a_random_map_is_the_same_for_any_text():
    """The score of one text is a fixed linear map of its rows: that of a sum is the sum."""
    i = tiny.route_in(np.zeros((1, 4, E), np.float32), tiny.document([[0, 1, 2, 3]]))
    rows = [oracles.softmax(np.random.default_rng(seed).standard_normal((1, 4, E))) for seed in (0, 1)]

    def mixed(row_BTE):
        x_BTE = np.log(row_BTE).astype(np.float32)
        return np.asarray(Blind(1.5).score({"w": jnp.eye(E)}, i.replace(x_BTD=x_BTE))[1])

    half = mixed((rows[0] + rows[1]) / 2)
    np.testing.assert_allclose(half, (mixed(rows[0]) + mixed(rows[1])) / 2, atol=1e-6)
    assert np.abs(mixed(rows[0]) - rows[0]).max() > 0.01


def test_widths_by_hand():
    """Windows of 2 over 3 tokens: 0, log 2, log 2; scores that are all equal: 0, log 2, log 3."""
    assert entropy_of_recent(2, 3) == pytest.approx(2 * math.log(2) / 3)
    assert entropy_of_blind(0.0, 3) == pytest.approx((math.log(2) + math.log(3)) / 3, rel=1e-6)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_controls_are_as_wide_as_asked(width):
    blind, recent = matched(width, 32)
    assert entropy_of_blind(blind.sharpness, 32) == pytest.approx(width, abs=0.01)
    assert entropy_of_recent(recent.window, 32) == pytest.approx(width, abs=0.3)  # windows are whole


def test_width_of_a_map_over_heads():
    """Two heads that look at one token each: their mean is even over both."""
    i = tiny.route_in(np.zeros((1, 2, D), np.float32), tiny.document([[0, 1]]))
    key_BSGA = 50 * np.eye(2, dtype=np.float32)[None, :, None]
    query_BTHA = np.stack([np.full((2, 2), (1, 0)), np.full((2, 2), (0, 1))], axis=1)[None].astype(np.float32)
    got_BT = row_entropy(Mixing(query_BTHA, key_BSGA, i.mixing.rule))
    np.testing.assert_allclose(got_BT, [[0, math.log(2)]], atol=1e-5)
