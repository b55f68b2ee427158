"""The hybrid router on the five tokens of its paper's brief numbers: N = 6, q = 1.1."""

import dataclasses

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.select.entropy import TsallisHybrid
from moejax.routers.select.top_k import TopK
from tests.routers.select.by_hand import select, weights

UNIFORM = [1 / 6] * 6
SCORE = [  # entropies 0.633311, 0.936397, 0.999664, 0.248261, 0.738759
    [0.60, 0.25, 0.05, 0.04, 0.03, 0.03],
    [0.30, 0.25, 0.15, 0.12, 0.10, 0.08],
    UNIFORM,
    [0.90, 0.04, 0.02, 0.02, 0.01, 0.01],
    [0.50, 0.20, 0.20, 0.05, 0.03, 0.02],
]
PAPER = TsallisHybrid(6)


def active(selector):
    return [sum(expert < 6 for expert in row) for row in select(selector, SCORE)[0]]


def test_undecided_tokens_take_all_and_decided_ones_few():
    """The last one's second and third experts tie at 0.9 together: they may not cross 0.75."""
    assert active(PAPER) == [2, 6, 6, 2, 2]
    mass_T = weights(PAPER, SCORE).sum(-1)
    np.testing.assert_allclose(mass_T, [0.85, 1, 1, 0.94, 0.70], rtol=1e-6)


def test_the_threshold_lies_between_the_entropies():
    """0.936397 of the second token, 0.999664 of the uniform one, which is 1 without eps."""
    assert active(dataclasses.replace(PAPER, threshold=0.9363)) == [2, 6, 6, 2, 2]
    assert active(dataclasses.replace(PAPER, threshold=0.9365)) == [2, 3, 6, 2, 2]
    assert active(dataclasses.replace(PAPER, threshold=0.9997)) == [2, 3, 4, 2, 2]


def test_limits():
    """Below 0: soft routing; as many kept as there are experts: soft; at 1 with p = 0: top-k."""
    np.testing.assert_allclose(weights(dataclasses.replace(PAPER, threshold=-0.1), SCORE), SCORE, rtol=1e-6)
    np.testing.assert_allclose(weights(dataclasses.replace(PAPER, keep=6), SCORE), SCORE, rtol=1e-6)
    top_2 = dataclasses.replace(PAPER, threshold=1.0, p=0.0)
    np.testing.assert_array_equal(weights(top_2, SCORE), weights(TopK(2, renormalise=False), SCORE))


def test_slots_limit_the_broadcast():
    assert select(TsallisHybrid(3), [UNIFORM])[0] == [[0, 1, 2]]


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.keep=2 experts in selector.k=1 slots is impossible"):
        TsallisHybrid(1)
    with pytest.raises(UsageError, match=r"selector.p=1.5 must lie between 0 and 1"):
        TsallisHybrid(6, p=1.5)
    with pytest.raises(UsageError, match=r"q=1.01 with eps=1e-05: near q = 1"):
        TsallisHybrid(6, q=1.01)
