"""Averages by hand; a law found again from points that follow it."""

import dataclasses
import itertools

import numpy as np
import pytest

from moejax.analysis.scaling_law import Law, Point, avg_params, fit
from moejax.errors import UsageError

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
PARAMS, TOKENS = np.geomspace(1e8, 1e10, 5), np.geomspace(2e9, 2e11, 5)


def points(law, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, law.loss(n, d) * np.exp(noise * rng.standard_normal()))
        for n, d in itertools.product(PARAMS, TOKENS)
    ]


def test_an_average_by_hand():
    assert avg_params([(0, 8.0), (2, 4.0), (6, 2.0)], 8) == (2 * 8 + 4 * 4 + 2 * 2) / 8
    assert avg_params([(0, 5.0)], 3) == 5.0


@pytest.mark.parametrize("trace", [[(1, 8.0)], [(0, 8.0), (9, 4.0)], [(0, 8.0), (4, 4.0), (2, 2.0)]])
def test_a_trace_that_is_none_is_refused(trace):
    with pytest.raises(UsageError, match="begin at 0, rise"):
        avg_params(trace, 8)


def test_a_law_is_found_again():
    got = fit(points(CHINCHILLA))
    for field in dataclasses.fields(Law):
        assert getattr(got, field.name) == pytest.approx(getattr(CHINCHILLA, field.name), rel=5e-3)


def test_one_bad_run_does_not_move_it():
    """Huber's loss: a run that went wrong by half pulls as hard as one that is off by a thousandth."""
    seen = points(CHINCHILLA, noise=1e-4)
    seen[7] = dataclasses.replace(seen[7], loss=1.5 * seen[7].loss)
    got = fit(seen)
    for n, d in [(1e11, 2e12), (PARAMS[1], TOKENS[2])]:
        assert got.loss(n, d) == pytest.approx(CHINCHILLA.loss(n, d), rel=5e-3)


def test_points_that_do_not_determine_it_are_refused():
    with pytest.raises(UsageError, match="at least 5"):
        fit(points(CHINCHILLA)[:4])
    with pytest.raises(UsageError, match="same tokens"):
        fit([dataclasses.replace(point, tokens=1e9) for point in points(CHINCHILLA)])
