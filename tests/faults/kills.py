"""A run that is killed again and again."""

import random
import signal
import time
from typing import NamedTuple

from tests.faults import trainer
from tests.faults.trainer import Trainer

EVERY = 5  # steps between saves


class Kill(NamedTuple):
    """What a killed process had done."""

    logged: int  # the last step in metrics.jsonl
    saved: int  # the newest checkpoint; 0 is none


def kill_once(train: Trainer, run_dir, flags, step: int, delay: float) -> Kill:
    """Start, and kill -9 `delay` seconds after the process logged `step`, or began if `step` is 0."""
    process = train.start(run_dir, *flags)
    if step:
        # before that, the lines are those of the process before
        process.wait_until(lambda: "compiled the train step" in process.output())
        process.wait_until(lambda: trainer.last_logged(run_dir) >= step)
    time.sleep(delay)
    process.send(signal.SIGKILL)
    ended = process.wait()
    assert ended.code == -signal.SIGKILL, ended.output
    assert trainer.is_sound(run_dir)
    return Kill(trainer.last_logged(run_dir), max(trainer.steps(run_dir), default=0))


def kill_often(train: Trainer, run_dir, flags, seed: int, kills: int, steps: int) -> list[Kill]:
    """Kill `kills` processes of one run at random moments, then let it end.

    Each kill has its own part of the run, so that early ones do not use up all of it; every fourth is at
    a random moment of the start, where a process cleans up after the one before.
    """
    draw = random.Random(seed)
    part = (steps - EVERY) // kills
    seen = []
    for number in range(kills):
        if number % 4 == 2:
            seen.append(kill_once(train, run_dir, flags, 0, draw.uniform(1, 4)))
        else:
            step = number * part + draw.randint(1, part)
            seen.append(kill_once(train, run_dir, flags, step, draw.uniform(0, 0.05)))
    ended = train(run_dir, *flags)
    assert ended.code == 0, ended.output
    return seen


def check_equal(run_dir, straight_dir) -> None:
    """A run that was killed left exactly what an undisturbed one did."""
    assert trainer.differing(trainer.saved(run_dir), trainer.saved(straight_dir)) == []
    assert trainer.losses(run_dir) == trainer.losses(straight_dir)  # so each step is there once
    assert trainer.leftovers(run_dir) == []
