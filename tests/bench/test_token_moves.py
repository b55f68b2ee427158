"""Tokens that travel over eight devices arrive, and are counted as on paper."""

import numpy as np
import pytest

from moejax.bench.token_moves import rows_sent
from moejax.errors import UsageError


def test_by_hand():
    """Four tokens start as two and two; token 1 and 2 change sides once, then all meet on device 1."""
    device_LN = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    assert rows_sent(device_LN, 2).tolist() == [0, 2, 2]


def test_counts_are_those_of_the_trace():
    device_LN = np.random.default_rng(0).integers(0, 8, (4, 64))
    home_N = np.arange(64) // 8
    moved = np.concatenate([home_N[None], device_LN])
    assert rows_sent(device_LN, 8).tolist() == (np.diff(moved, axis=0) != 0).sum(axis=1).tolist()


def test_refusals():
    with pytest.raises(UsageError, match="5 tokens do not spread evenly over 2 devices"):
        rows_sent(np.zeros((2, 5), int), 2)
    with pytest.raises(UsageError, match="1024 devices are wanted"):
        rows_sent(np.zeros((2, 1024), int), 1024)
