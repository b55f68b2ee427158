"""F1: a run that is killed at any moment, and started again by the same command, ends as if nothing had been."""

import random
import signal
import time

import pytest

from tests.faults import trainer
from tests.faults.trainer import Ended, Trainer

EVERY = 5  # steps between saves


def kill_at(train: Trainer, run_dir, flags, step: int, delay: float) -> tuple[Ended, int, int]:
    """Start, kill `delay` seconds after `step` was logged; the end, the last step logged, the last saved."""
    process = train.start(run_dir, *flags)
    process.wait_until(lambda: trainer.last_logged(run_dir) >= step)
    time.sleep(delay)
    process.send(signal.SIGKILL)
    ended = process.wait()
    return ended, trainer.last_logged(run_dir), max(trainer.steps(run_dir), default=0)


def kill_often(train: Trainer, run_dir, flags, seed: int, kills: int, steps: int) -> list[dict]:
    """Kill `kills` processes of one run at random moments of its progress, then let it end."""
    draw = random.Random(seed)
    seen = []
    part = (steps - EVERY) // kills  # one kill in each, so that early ones do not use up all of them
    for step in (number * part + draw.randrange(part) for number in range(kills)):
        ended, logged, kept = kill_at(train, run_dir, flags, step, draw.uniform(0, 0.1))
        assert ended.code == -signal.SIGKILL, ended.output
        assert trainer.is_sound(run_dir)
        seen.append({"aimed": step, "logged": logged, "saved": kept})
    ended = train(run_dir, *flags)
    assert ended.code == 0, ended.output
    return seen


def check_equal_to_straight(run_dir, straight_dir) -> None:
    assert trainer.differing(trainer.saved(run_dir), trainer.saved(straight_dir)) == []
    assert trainer.losses(run_dir) == trainer.losses(straight_dir)  # so each step is there once
    assert trainer.leftovers(run_dir) == []


def test_killed_at_random_moments(train, straight, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    run_dir = tmp_path / "run"
    seen = kill_often(train, run_dir, (), seed, kills=3, steps=30)
    print(seen)
    # A save runs beside the next steps, and the one after it waits for it: two intervals at most are lost.
    assert all(kill["logged"] - kill["saved"] < 2 * EVERY + 1 for kill in seen)
    check_equal_to_straight(run_dir, straight)


@pytest.mark.nightly
def test_killed_at_twelve_random_moments(train, tmp_path):
    flags = ("--config.train.steps=200",)
    straight_dir, run_dir = tmp_path / "straight", tmp_path / "run"
    assert train(straight_dir, *flags).code == 0
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    print(kill_often(train, run_dir, flags, seed, kills=12, steps=200))
    check_equal_to_straight(run_dir, straight_dir)
