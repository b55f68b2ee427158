"""Masks by hand; mixing against float64 loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.ops.attention import mix, visible
from moejax.seams import MaskRule
from tests.contracts import oracles


def rule(pos, seg, valid, **more):
    return MaskRule(
        np.array([pos]), np.array([seg]), np.array([pos]), np.array([seg]), np.array([valid]), **more
    )


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_visible_by_hand(self):
        """Two documents of two tokens; the first token of the second is absent as a key."""
        seen_BTS = self.variant(visible)(rule([0, 1, 0, 1], [1, 1, 2, 2], [True, True, False, True]))
        want_TS = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
        np.testing.assert_array_equal(np.reshape(seen_BTS, (-1, 4, 4))[0], np.array(want_TS, bool))

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_two_keys_by_hand(self):
        """Query 1 scores its keys log 3 and 0, so values 4 and 8 mix to 5; query 0 sees itself."""
        q_BTHA = np.full((1, 2, 1, 4), 1.0, np.float32)
        k_BSGA = np.array([[[[np.log(3) / 2] * 4], [[0.0] * 4]]], np.float32)
        v_BSGA = np.array([[[[4.0] * 4], [[8.0] * 4]]], np.float32)
        o_BTHA = self.variant(mix)(q_BTHA, k_BSGA, v_BSGA, rule([0, 1], [1, 1], [True, True]))
        np.testing.assert_allclose(np.reshape(o_BTHA, (-1, 2, 4))[0], [[4.0] * 4, [5.0] * 4], rtol=1e-6)


def test_a_window_counts_the_query_itself():
    seen_TS = np.asarray(visible(rule([0, 1, 2], [1, 1, 1], [True] * 3, window=2))[0])
    np.testing.assert_array_equal(seen_TS, np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool))


def random_rule(T, window=None, own_row=True):
    rng = np.random.default_rng(0)
    at_BT = np.broadcast_to(np.arange(T), (2, T))
    pos_BT, seg_BT, valid_BT = at_BT % 5, at_BT // 5, rng.random((2, T)) < 0.7
    return MaskRule(pos_BT, seg_BT, pos_BT, seg_BT, valid_BT, window, own_row=own_row)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("own_row", [True, False])
def test_equals_loops(window, own_row):
    """By the kernel and over a slot; rows that see no key give zeros, absent ones of the kernel too."""
    rng, T = np.random.default_rng(1), 13
    q_BTHA, k_BSGA, v_BSGA = (rng.standard_normal((2, T, heads, 4)) for heads in (6, 2, 2))
    mask = random_rule(T, window, own_row)
    want_BTHA = oracles.attend(q_BTHA, k_BSGA, v_BSGA, mask)
    assert (want_BTHA == 0).all(-1).any(), "this mask leaves no query without a key"
    if own_row:
        want_BTHA = np.where(mask.k_valid_BS[:, :, None, None], want_BTHA, 0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(mix(q_BTHA, k_BSGA, v_BSGA, mask), want_BTHA, rtol=1e-10, atol=1e-12)
        slopes = jax.grad(lambda q, k, v: jnp.sum(jnp.square(mix(q, k, v, mask))), argnums=(0, 1, 2))
        chex.assert_tree_all_finite(slopes(q_BTHA, k_BSGA, v_BSGA))


def test_scores_of_thousands_do_not_overflow():
    q_BTHA = np.full((1, 2, 1, 2), 1e3, np.float32)
    o_BTHA = mix(q_BTHA, q_BTHA, np.ones((1, 2, 1, 2), np.float32), rule([0, 1], [1, 1], [True, True]))
    np.testing.assert_allclose(o_BTHA, 1.0)


@pytest.mark.parametrize("own_row", [True, False])
def test_a_sink_takes_its_share_by_hand(own_row):
    """Scores 0 and 0 and a sink of log 2: keys keep a quarter each, so values 4 and 8 give 3; 4 gives 4/3."""
    q_BTHA, k_BSGA = np.zeros((1, 2, 1, 4), np.float32), np.ones((1, 2, 1, 4), np.float32)
    v_BSGA = np.array([[[[4.0]], [[8.0]]]], np.float32)
    mask = rule([0, 1], [1, 1], [True, True], own_row=own_row)
    o_BTHA = mix(q_BTHA, k_BSGA, v_BSGA, mask, np.log([2.0], dtype=np.float32))
    np.testing.assert_allclose(np.ravel(o_BTHA), [4 / 3, 3.0], rtol=1e-6)


@pytest.mark.parametrize("own_row", [True, False])
def test_sinks_equal_loops_and_finite_differences(own_row):
    """Sinks below and far above all scores; rows that see no key give zeros, and all slopes are finite."""
    rng, T = np.random.default_rng(3), 11
    operands = [rng.standard_normal((2, T, heads, 4)) for heads in (6, 2, 2)]
    operands.append(np.array([-50.0, -1.0, 0.0, 1.0, 2.0, 50.0]))
    mask = random_rule(T, window=4, own_row=own_row)
    want_BTHA = oracles.attend(*operands[:3], mask, operands[3])
    assert (want_BTHA[..., 0, :] == 0).all(-1).any(), "this mask leaves no query without a key"
    if own_row:
        want_BTHA = np.where(mask.k_valid_BS[:, :, None, None], want_BTHA, 0)
    weight_BTHA = rng.standard_normal(want_BTHA.shape)
    with jax.enable_x64(True):
        loss = jax.jit(lambda q, k, v, sink: jnp.sum(weight_BTHA * mix(q, k, v, mask, sink)))
        np.testing.assert_allclose(mix(*operands[:3], mask, operands[3]), want_BTHA, rtol=1e-9, atol=1e-12)
        for i, slope in enumerate(jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*operands)):
            way = rng.standard_normal(slope.shape)
            at = lambda step, i=i, way=way: loss(*operands[:i], operands[i] + step * way, *operands[i + 1 :])
            difference = (at(1e-5) - at(-1e-5)) / 2e-5
            np.testing.assert_allclose(np.sum(slope * way), difference, rtol=1e-6, atol=1e-8)
