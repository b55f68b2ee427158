"""F1: a run that is killed at any moment and started again ends as if nothing had happened."""

import random

import pytest

from tests.faults.kills import EVERY, check_equal, kill_often


def some_seed() -> int:
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    return seed


def test_killed_at_random_moments(train, straight, tmp_path):
    run_dir = tmp_path / "run"
    seen = kill_often(train, run_dir, (), some_seed(), kills=3, steps=30)
    print(seen)
    # One interval and the steps made while a save is written are lost; the next save waits for it, and these
    # steps are so short that it has to: two intervals at most.
    assert all(kill.logged - kill.saved <= 2 * EVERY for kill in seen)
    check_equal(run_dir, straight)


@pytest.mark.nightly
def test_killed_at_twelve_random_moments(train, tmp_path):
    flags = ("--config.train.steps=200",)
    straight_dir, run_dir = tmp_path / "straight", tmp_path / "run"
    assert train(straight_dir, *flags).code == 0
    seen = kill_often(train, run_dir, flags, some_seed(), kills=12, steps=200)
    assert all(kill.logged - kill.saved <= 2 * EVERY for kill in seen)
    check_equal(run_dir, straight_dir)
