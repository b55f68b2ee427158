"""Balance of first choices by hand."""

import numpy as np
import pytest

from moejax.losses.gshard import GShard
from tests.losses import seen

SCORES = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.5, 0.1, 0.4],
    [0.1, 0.8, 0.1],
    [0.45, 0.15, 0.4],
    [0.2, 0.1, 0.7],
]
CHOSEN = [[0, 1], [0, 1], [0, 2], [1, 0], [0, 2], [2, 0]]


def test_six_tokens_three_experts_by_hand():
    """First choices (4, 1, 1)/6, mean scores (2.55, 1.65, 1.8)/6: 3 (4 * 2.55 + 1.65 + 1.8) / 36 = 1.1375."""
    one = ([seen.routing([CHOSEN], [SCORES])], seen.batch(np.ones((1, 6))))
    assert seen.value(GShard(), one) == pytest.approx(1.1375)


def test_second_choices_absent_tokens_and_cuts_change_nothing():
    """The same six tokens as two micro-batches, one with an absent token and other second choices."""
    first = ([seen.routing([CHOSEN[:2]], [SCORES[:2]])], seen.batch(np.ones((1, 2))))
    chosen = [[0, 1], [1, 2], [0, 1], [2, 1], [3, 3]]
    rest = ([seen.routing([chosen], [[*SCORES[2:], [9.0, 9.0, 9.0]]])], seen.batch([[1, 1, 1, 1, 0]]))
    assert seen.value(GShard(), first, rest) == pytest.approx(1.1375)


def test_perfect_balance_is_one_and_collapse_is_E():
    even = seen.routing(np.arange(4)[None, :, None], np.full((1, 4, 4), 0.25))
    collapsed = seen.routing(np.zeros((1, 4, 1)), np.eye(4)[np.zeros((1, 4), int)])
    batch = seen.batch(np.ones((1, 4)))
    assert seen.value(GShard(), ([even], batch)) == pytest.approx(1.0)
    assert seen.value(GShard(), ([collapsed], batch)) == pytest.approx(4.0)
