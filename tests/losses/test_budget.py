"""The budget by hand: per sequence, not per token and not over the batch."""

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.losses.budget import Budget
from tests.losses import seen


def layers_of(big_LBT):
    """A routing per layer in which expert 1 has the given probability."""
    big_LBT = np.asarray(big_LBT, np.float32)
    return [seen.routing(big_BT[..., None] > 0.5, np.stack([1 - big_BT, big_BT], -1)) for big_BT in big_LBT]


def test_two_tokens_three_layers_by_hand():
    """P_big (.9, .2, .4), (.1, .2, .6): their mean is 0.4, (0.4 - 0.5)^2 = 0.01; per token it were 0.02."""
    layers = layers_of([[[0.9, 0.1]], [[0.2, 0.2]], [[0.4, 0.6]]])
    assert seen.value(Budget(), (layers, seen.batch([[1, 1]]))) == pytest.approx(0.01, rel=1e-5)


def test_no_sequence_takes_the_share_of_another():
    """One row all big, one all small: each misses 0.5 by 0.5, though the batch meets it, cut or not."""
    rows = [(layers_of([[[p, p, 0.7]]]), seen.batch([[1, 1, 0]])) for p in (0.0, 1.0)]
    assert seen.value(Budget(), *rows) == pytest.approx(0.25)
    both = layers_of([[[0.0, 0.0, 0.7], [1.0, 1.0, 0.7], [0.5, 0.5, 0.5]]])
    absent_row = seen.batch([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert seen.value(Budget(), (both, absent_row)) == pytest.approx(0.25)


def test_costs_of_several_experts():
    """Skipped with probability 0.2, small 0.3, big 0.5; costs 1/16 and 1: 0.51875 against 0.5."""
    layer = seen.routing([[[1]]], [[[0.3, 0.5]]])
    loss = Budget(cost=(1 / 16, 1.0))
    assert seen.value(loss, ([layer], seen.batch([[1]]))) == pytest.approx(0.01875**2, rel=1e-4)


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(UsageError, match=r"target=2 is out of reach"):
        Budget(target=2)
    with pytest.raises(UsageError, match=r"for 2 experts, the layer has 3"):
        seen.value(Budget(), ([seen.routing([[[0]]], [[[0.2, 0.3, 0.5]]])], seen.batch([[1]])))
