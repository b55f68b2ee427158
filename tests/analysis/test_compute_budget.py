"""Budgets by hand and against all that could be chosen."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis.compute_budget import allocate, allocate_exact
from moejax.errors import UsageError

BOTH = pytest.mark.parametrize("solve", [allocate, allocate_exact])


@BOTH
def test_three_tokens_by_hand(solve):
    """Gains of a first and a second layer: 2, 1; 0.5, 0.1; none, and worse. Token 0 is worth two layers."""
    loss_NC = [[4, 2, 1], [3, 2.5, 2.4], [1, 1, 2]]
    for total, want in ((0, [0, 0, 0]), (1, [1, 0, 0]), (2, [2, 0, 0]), (3, [2, 1, 0]), (6, [2, 2, 0])):
        found = solve(loss_NC, total)
        np.testing.assert_array_equal(found.layers_N, want)
        assert found.loss == pytest.approx(sum(loss[c] for loss, c in zip(loss_NC, want, strict=True)))
        assert found.gap == 0


def test_a_step_that_cannot_be_divided_leaves_a_gap():
    """Token 0 gains most, but only from two layers; the one that there is should go to token 1."""
    loss_NC = [[4, 4, 1], [3, 2, 2]]
    greedy, exact = allocate(loss_NC, 1), allocate_exact(loss_NC, 1)
    assert (greedy.loss, greedy.gap) == (7, 1.5)
    assert (exact.loss, exact.gap) == (6, 0)
    np.testing.assert_array_equal(exact.layers_N, [0, 1])


@given(st.integers(0, 10_000))
def test_against_everything_that_could_be_chosen(seed):
    rng = np.random.default_rng(seed)
    N, C, total = rng.integers(1, 5), rng.integers(1, 5), rng.integers(0, 12)
    loss_NC = rng.random((N, C)).round(2)
    if seed % 2:  # convex, where the hull leaves no gap but at its end
        loss_NC = -np.cumsum(np.sort(loss_NC, axis=1)[:, ::-1], axis=1)
    spent = (np.array(c) for c in itertools.product(range(C), repeat=N) if sum(c) <= total)
    least = min(loss_NC[np.arange(N), c].sum() for c in spent)
    exact, greedy = allocate_exact(loss_NC, total), allocate(loss_NC, total)
    assert exact.loss == pytest.approx(least)
    assert least - 1e-9 <= greedy.loss <= least + greedy.gap + 1e-9
    if seed % 2:
        assert greedy.loss == pytest.approx(least)
    for found in (exact, greedy):
        assert found.layers_N.sum() <= total
        assert found.loss == pytest.approx(loss_NC[np.arange(N), found.layers_N].sum())


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match="total=-1"):
        allocate([[1.0]], -1)
    with pytest.raises(UsageError, match="not finite"):
        allocate([[1.0, np.inf]], 1)
    with pytest.raises(UsageError, match=r"shape \(2,\)"):
        allocate([1.0, 2.0], 1)
