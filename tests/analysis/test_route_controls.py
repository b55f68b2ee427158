"""Controls of the oracle: by hand on three tokens, and against draws."""

import itertools

import numpy as np
import pytest

from moejax.analysis.route_controls import best_by_id, expected_best, spread
from moejax.errors import UsageError


def test_the_best_of_two_of_three_by_hand():
    """Of (1, 2, 6) the pairs have least 1, 1 and 2; one alone has the mean 3, all three have 1."""
    loss_RN = np.array([[2.0], [6.0], [1.0]])
    assert expected_best(loss_RN, 2)[0] == pytest.approx(4 / 3)
    assert expected_best(loss_RN, 1)[0] == pytest.approx(3)
    assert expected_best(loss_RN, 3)[0] == pytest.approx(1)


def test_it_is_the_mean_over_all_choices():
    loss_RN = np.random.default_rng(0).standard_normal((6, 5))
    sets = itertools.combinations(range(6), 3)
    want_N = np.mean([loss_RN[list(chosen)].min(axis=0) for chosen in sets], axis=0)
    np.testing.assert_allclose(expected_best(loss_RN, 3), want_N, rtol=1e-12)


@pytest.mark.parametrize(("count", "sigmas"), [(12, -1.62), (495, -3.03), (924, -3.21)])
def test_selection_alone_gains_more_from_more_candidates(count, sigmas):
    """The expected minimum of so many standard normals: the paper's numbers of routes."""
    normal_RN = np.random.default_rng(0).standard_normal((1000, 400))
    assert expected_best(normal_RN, count).mean() == pytest.approx(sigmas, abs=0.06)


def test_more_than_there_are_is_refused():
    with pytest.raises(UsageError, match=r"count=3 must lie between 1 and the 2 candidates"):
        expected_best(np.ones((2, 1)), 3)


def test_an_id_takes_its_own_candidate_and_a_new_one_that_of_all():
    """Id 0 is better off with the second candidate, id 1 with the first; id 2 occurs only in the test."""
    loss_RN = np.array([[3.0, 1.0, 1.0, 9.0], [2.0, 5.0, 5.0, 0.0]])
    best_N = best_by_id(loss_RN, [0, 1, 1, 2], [True, True, True, False])
    np.testing.assert_array_equal(best_N, [1, 0, 0, 0])


def test_spread_by_hand():
    assert spread([[1.0, 5.0], [3.0, 5.0]]) == pytest.approx(0.5)
