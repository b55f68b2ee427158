"""The watchdog, in processes of their own: it bites what hangs, and nothing else."""

import os
import subprocess
import sys
import time

import pytest

from moejax.training import watchdog
from moejax.training.watchdog import Watchdog

TRAIN = """
import sys, time
from moejax.training.watchdog import Watchdog

def the_step_that_hangs():
    time.sleep(60)

with Watchdog(float(sys.argv[1]), sys.argv[2]) as watchdog:
    for _ in range(int(sys.argv[3])):
        time.sleep(0.05)
        watchdog.beat()
        print("step", flush=True)
    if sys.argv[4] == "hang":
        the_step_that_hangs()
"""


@pytest.fixture
def train(tmp_path):
    def start(seconds, steps, end):
        args = [sys.executable, "-c", TRAIN, str(seconds), str(tmp_path), str(steps), end]
        env = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_a_hang_ends_with_stacks_and_one_line(train, tmp_path):
    with train(0.5, 2, "hang") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 77
    (stacks,) = tmp_path.glob("stacks-*.txt")
    assert "the_step_that_hangs" in stacks.read_text()
    assert str(stacks) in err and "train.watchdog_seconds=0.5" in err and len(err.split("\n")) == 3


@pytest.mark.parametrize("seconds", [2.0, 0.0])
def test_a_run_that_steps_is_left_alone(train, tmp_path, seconds):
    with train(seconds, 4, "end") as process:
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_stopped_process_is_no_hang(tmp_path, monkeypatch):
    """The clock jumps, as for a process that was stopped; only the silence after that counts."""
    clock, jump, bites = time.monotonic, [0.0], []
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock() + jump[0])
    with Watchdog(0.4, tmp_path) as dog:

        def bite(silence):
            bites.append(silence)
            dog._ended.set()

        dog._bite = bite
        jump[0] = 100.0
        dog._thread.join(timeout=30)
    assert 0.4 < bites[0] < 50


def test_the_thread_ends_with_the_run(tmp_path):
    with Watchdog(30.0, tmp_path) as dog:
        assert dog._thread.is_alive()
    assert not dog._thread.is_alive()
