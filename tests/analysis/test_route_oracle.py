"""Routes counted by hand, the oracle on three tokens, and what must hold for any losses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis.route_oracle import (
    count_big,
    random_patterns,
    route_table,
    search_greedy,
    search_parallel,
)
from moejax.errors import UsageError


def test_two_layers_by_hand():
    np.testing.assert_array_equal(route_table(2), [[0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(route_table(2, budget=1), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(route_table(1, options=3), [[0], [1], [2]])


def test_routes_of_twelve_layers():
    big_R = count_big(route_table(12))
    assert len(big_R) == 4096
    assert [np.sum(big_R == b) for b in (0, 1, 4, 6, 8, 12)] == [1, 12, 495, 924, 495, 1]
    assert len(route_table(8, options=3)) == 3**8
    assert len(route_table(4, budget=2, options=3)) == math.comb(4, 2) * 2**2


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match=r"budget=3 must lie between 0 and layers=2"):
        route_table(2, budget=3)
    with pytest.raises(UsageError, match=r"options=4"):
        route_table(2, options=4)


def search(loss_RBT, route_RL, weight_BT, chunk=3):
    """The oracle of losses that are known beforehand; checks that every call has `chunk` routes."""
    index = {route.tobytes(): r for r, route in enumerate(route_RL)}

    def losses(part_RL):
        assert len(part_RL) == chunk
        return loss_RBT[[index[route.tobytes()] for route in part_RL]]

    return search_parallel(losses, route_RL, weight_BT, chunk)


def test_three_tokens_two_layers_by_hand():
    """Losses of small-small, small-big, big-small, big-big for each token."""
    loss_TR = np.array([[2, 1, 3, 1.5], [0.5, 0.9, 0.4, 0.8], [4, 3.9, 4.1, 3.3]])
    oracle = search(loss_TR.T[:, None], route_table(2), np.ones((1, 3)))
    np.testing.assert_allclose(oracle.mean_R, [2.1667, 1.9333, 2.5, 1.8667], atol=5e-5)
    assert oracle.loss() == pytest.approx(1.5667, abs=5e-5)
    assert oracle.loss(1) == pytest.approx(1.7667, abs=5e-5)
    assert oracle.loss(0) == oracle.fixed(0)[0] == pytest.approx(2.1667, abs=5e-5)
    assert oracle.loss(2) == oracle.fixed(2)[0] == pytest.approx(1.8667, abs=5e-5)
    assert oracle.fixed(1) == (pytest.approx(1.9333, abs=5e-5), 1)
    assert oracle.fixed()[1] == 3
    np.testing.assert_array_equal(oracle.best(), [[1, 2, 3]])
    np.testing.assert_array_equal(oracle.best(1), [[1, 2, 1]])


def test_ties_go_to_fewer_big_layers_then_to_the_lowest_route():
    oracle = search(np.ones((8, 1, 2)), route_table(3), np.ones((1, 2)))
    np.testing.assert_array_equal(oracle.best(), [[0, 0]])
    np.testing.assert_array_equal(oracle.best(2), [[3, 3]])
    assert oracle.fixed(1)[1] == 1


@given(st.integers(0, 10_000))
def test_what_must_hold(seed):
    """Best <= fixed for every budget, all routes <= every budget, and more routes are never worse."""
    rng = np.random.default_rng(seed)
    route_RL = route_table(3, options=rng.choice([2, 3]))
    loss_RBT = rng.random((len(route_RL), 2, 4)).astype(np.float32)
    weight_BT = rng.choice([0.0, 1.0], (2, 4))
    weight_BT[0, 0] = 1
    oracle = search(loss_RBT, route_RL, weight_BT, chunk=5)
    assert all(oracle.loss() <= oracle.loss(b) <= oracle.fixed(b)[0] + 1e-9 for b in range(4))
    least_BT = np.take_along_axis(loss_RBT, oracle.best()[None], axis=0)[0]
    np.testing.assert_array_equal(least_BT, loss_RBT.min(axis=0))
    some = np.sort(rng.choice(len(route_RL), 5, replace=False))
    assert search(loss_RBT[some], route_RL[some], weight_BT, chunk=2).loss() >= oracle.loss()


def test_a_token_without_weight_does_not_count():
    loss_RBT = np.array([[[1.0, 9.0]], [[2.0, 0.0]]])
    oracle = search(loss_RBT, route_table(1), np.array([[1.0, 0.0]]))
    assert oracle.loss() == 1.0
    assert oracle.fixed() == (1.0, 0)


def test_greedy_takes_the_best_step_and_remembers_it():
    """The loss of a step is |sum of big so far - target|; two rows with targets of their own."""
    target_TB = np.array([[1, 0], [3, 1]])

    def tried(memory_B, position, route_RL):
        return np.abs(memory_B[None] + count_big(route_RL)[:, None] - target_TB[position][None])

    def passed(memory_B, position, route_LB):
        return memory_B + count_big(route_LB.T)

    chosen_TBL, loss_TB = search_greedy(
        tried, passed, np.zeros(2), [route_table(2), route_table(2, budget=1)]
    )
    np.testing.assert_array_equal(chosen_TBL, [[[0, 1], [0, 0]], [[0, 1], [0, 1]]])
    np.testing.assert_array_equal(loss_TB, [[0, 0], [1, 0]])


def test_random_patterns_are_different_routes():
    few_RL = random_patterns(route_table(4), 5, seed=1)
    assert few_RL.shape == (5, 4)
    assert len(np.unique(few_RL, axis=0)) == 5
    assert len(random_patterns(route_table(2), 100)) == 4
