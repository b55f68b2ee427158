"""The controller by hand, and that it balances."""

import jax
import numpy as np

from moejax.config import BlockConfig
from moejax.ffn.dense import Dense
from moejax.losses.loss_free import LossFreeBias
from tests.contracts import tiny
from tests.losses import seen

LOSS = LossFreeBias(rate=0.25)


def updated(bias_LE, slots_LE):
    state = (({"bias_LE": np.asarray(bias_LE, np.float32)},),)
    return LOSS.total((({"slots": np.asarray(slots_LE, np.float32)},),), state)


def test_one_update_by_hand():
    """Loads (5, 1, 3) have mean 3: the crowded expert loses 1/4, the idle one gains it, the third stays."""
    value, state, metrics = updated([[0.0, 0.0, 0.5]], [[5, 1, 3]])
    assert value == 0
    np.testing.assert_array_equal(state[0][0]["bias_LE"], [[-0.25, 0.25, 0.5]])
    assert metrics["router/bias_max"] == 0.5


def test_the_largest_bias_of_several_routed_blocks():
    """The second position is dense; the third has the larger bias after its update."""
    state = (({"bias_LE": np.zeros((1, 2), np.float32)}, {}, {"bias_LE": np.full((1, 2), 0.5, np.float32)}),)
    stats = (({"slots": np.array([[3.0, 1.0]])}, {}, {"slots": np.array([[1.0, 3.0]])}),)
    _, state, metrics = jax.jit(LOSS.total)(stats, state)
    np.testing.assert_array_equal(state[0][0]["bias_LE"], [[-0.25, 0.25]])
    np.testing.assert_array_equal(state[0][2]["bias_LE"], [[0.75, 0.25]])
    assert metrics["router/bias_max"] == 0.75


def test_experts_that_no_token_is_routed_to_keep_their_bias():
    """As those of a soft mixture, which has experts but no slots."""
    state = (({"bias_LE": np.ones((1, 2), np.float32)},),)
    _, after, _ = LOSS.total((({},),), state)
    tiny.equal(after, state)


def test_the_sign_is_taken_once_over_all_micro_batches():
    """Slots (3, 1) and (0, 2) are (3, 3) together: nothing moves, though each half alone would."""
    halves = [
        ([seen.routing([[[0], [0], [0], [1]]], np.ones((1, 4, 2)))], seen.batch(np.ones((1, 4)))),
        ([seen.routing([[[1], [1], [2], [2]]], np.ones((1, 4, 2)))], seen.batch([[1, 1, 0, 0]])),
    ]
    sums = jax.tree.map(lambda a, b: a + b, *(seen.stats(LOSS, *half) for half in halves))
    np.testing.assert_array_equal(sums[0][0]["slots"], [[3, 3]])
    np.testing.assert_array_equal(updated([[0.0, 0.0]], sums[0][0]["slots"])[1][0][0]["bias_LE"], [[0, 0]])


def test_it_balances_a_lopsided_router():
    """Expert 0 is wanted by nearly all at first; the bias shares the tokens out."""
    score_NE = np.random.default_rng(0).random((64, 4)) + np.array([0.8, 0.0, 0.0, 0.0])
    bias_LE, rate = np.zeros((1, 4)), LossFreeBias(rate=0.02)
    for _ in range(100):
        slots_E = np.bincount(np.argmax(score_NE + bias_LE, axis=1), minlength=4)
        state = (({"bias_LE": np.float32(bias_LE)},),)
        bias_LE = np.asarray(
            rate.total((({"slots": np.float32(slots_E[None])},),), state)[1][0][0]["bias_LE"]
        )
    assert slots_E.max() <= 1.5 * 16


def test_only_routed_blocks_have_a_bias_and_it_steers_the_choice_alone():
    m = tiny.model(BlockConfig(tiny.ATTN, Dense(8)), BlockConfig(tiny.ATTN, tiny.MOE))
    state = LOSS.init(m)
    assert state[0][0] == {}
    assert state[0][1]["bias_LE"].shape == (2, 4)
    dense, routed = LOSS.side(state)[0]
    assert jax.tree.leaves(dense) == []
    assert routed.bias_BE is None
    assert routed.prefer_BE.shape == (2, 1, 4)
