"""Top-p by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import UsageError
from moejax.routers.select.top_p import TopP
from tests.routers.select.by_hand import select

SCORE = [[0.5, 0.125, 0.25, 0.125]]


@pytest.mark.parametrize(
    ("p", "experts"),
    [(0.4, [0]), (0.5, [0]), (0.51, [0, 2]), (0.75, [0, 2]), (0.8, [0, 2, 1]), (1.0, [0, 2, 1, 3])],
)
def test_the_smallest_set_that_reaches_p(p, experts):
    """Probabilities 1/2, 1/8, 1/4, 1/8: the mass before an expert decides, so a set may just reach p."""
    (got,), (gates,), _ = select(TopP(4, p=p), SCORE)
    assert got == experts + [4] * (4 - len(experts))
    assert gates.tolist() == [SCORE[0][e] for e in experts] + [0.0] * (4 - len(experts))


def test_no_more_than_k():
    assert select(TopP(2, p=1.0), SCORE)[0] == [[0, 2]]


def test_renormalised_gates_sum_to_one():
    _, (gates,), _ = select(TopP(4, p=0.75, renormalise=True), SCORE)
    assert gates.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_what_counts_is_the_share_of_the_choice():
    """Twice the scores change nothing; an expert that may not be chosen leaves its mass to the others."""
    doubled = [[2 * score for score in SCORE[0]]]
    assert select(TopP(4, p=0.75), doubled)[0] == [[0, 2, 4, 4]]
    without_the_first = [[-float("inf"), *SCORE[0][1:]]]  # shares 0, 1/4, 1/2, 1/4
    assert select(TopP(4, p=0.75), SCORE, without_the_first)[0] == [[2, 1, 4, 4]]


@given(st.lists(st.integers(0, 20), min_size=5, max_size=5).filter(any), st.integers(1, 19))
def test_one_expert_fewer_would_not_reach_p(counts, twentieths):
    p = twentieths / 20
    score = [count / sum(counts) for count in counts]
    (experts,), _, _ = select(TopP(5, p=p), [score])
    taken = [score[e] for e in experts if e < 5]
    assert sum(taken) >= p - 1e-6
    assert sum(taken[:-1]) < p + 1e-6
    assert min(taken) >= max((score[e] for e in range(5) if e not in experts), default=0)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.k=0 must be at least 1"):
        TopP(0)
    with pytest.raises(UsageError, match=r"selector.p=0 must lie above 0"):
        TopP(2, p=0)
