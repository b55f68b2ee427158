"""Contests: everybody who can takes part, nobody's failure ends one."""

import pytest

from moejax.bench.contest import Contest, hold


class Runner:
    """Counts its runs, and fails when told to."""

    def __init__(self, error: str = ""):
        self.error, self.runs = error, 0

    def __call__(self):
        if self.error:
            raise NotImplementedError(self.error)
        self.runs += 1


def contest(runners, **more):
    return Contest("race", 2_000_000_000, lambda: runners, **more)


def test_rates_and_ratios():
    outcome = hold(contest({"moejax": Runner(), "dense": Runner()}), num_rounds=3, least_seconds=0.0)
    measures = {measure.name: measure for measure in outcome.measures()}
    assert list(measures) == ["race: moejax", "race: dense", "race: moejax / dense"]
    ours, dense, ratio = measures.values()
    assert (ours.unit, ours.n) == ("GFLOP/s", 3)
    assert ratio.value == pytest.approx(ours.value / dense.value)


def test_who_fails_is_absent_with_the_reason():
    outcome = hold(contest({"moejax": Runner(), "peer": Runner("no such chip\nmore")}), 2, 0.0)
    assert list(outcome.seconds) == ["moejax"]
    assert outcome.notes() == ["race: peer is absent: NotImplementedError: no such chip"]


def test_without_moejax_there_is_no_ratio():
    outcome = hold(contest({"moejax": Runner("broken"), "dense": Runner()}), 2, 0.0)
    assert [measure.name for measure in outcome.measures()] == ["race: dense"]


def test_who_is_slow_runs_once_and_last():
    runners = {"slow": Runner(), "moejax": Runner()}
    outcome = hold(contest(runners, slow="slow"), num_rounds=4, least_seconds=0.0)
    assert list(outcome.seconds) == ["moejax", "slow"] and len(outcome.seconds["slow"]) == 1
    assert runners["slow"].runs == 2  # one of them to compile
