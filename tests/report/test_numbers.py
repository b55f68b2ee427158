"""Numbers and ticks as people read them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.report import numbers

NUMBERS = {
    "0": 0,
    "12": 12.0,
    "0.5": 0.5,
    "-2.25": -2.25,
    "1,234": 1234,
    "1.23 M": 1234567,
    "6.1 G": 6.1e9,
    "0.001": 1e-3,
    "3.1e-4": 3.1e-4,
    "-": float("nan"),
}


@pytest.mark.parametrize("words", NUMBERS)
def test_numbers_as_people_read_them(words):
    assert numbers.plain(NUMBERS[words]) == words


def test_ticks_by_hand():
    np.testing.assert_allclose(numbers.linear_ticks(0, 1500, 6), [0, 200, 400, 600, 800, 1000, 1200, 1400])
    np.testing.assert_allclose(numbers.linear_ticks(1.13, 1.42, 6), [1.15, 1.2, 1.25, 1.3, 1.35, 1.4])
    np.testing.assert_allclose(numbers.log_ticks(0.05, 200), [0.1, 1, 10, 100])


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-12, 1e12), st.floats(1.01, 1e6), st.booleans())
def test_ticks_lie_inside_and_are_few(low, ratio, log):
    high = low * ratio
    ticks = numbers.log_ticks(low, high) if log else numbers.linear_ticks(low, high)
    slack = 2e-3 * high
    assert 1 <= len(ticks) <= 11
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_smoothing_keeps_a_straight_line_and_averages_noise():
    np.testing.assert_allclose(numbers.smooth(np.arange(7.0), 4), np.arange(7.0))
    np.testing.assert_allclose(numbers.smooth(np.array([0.0, 6.0, 0.0, 3.0]), 2), [0.0, 2.0, 3.0, 3.0])
