"""F3 and F9: a run that is asked to stop, and a directory that is in use."""

import platform
import random
import re
import signal

import pytest

from tests.faults import trainer


@pytest.fixture
def hung(train, tmp_path):
    """(run directory, process) of a run that hangs in step 8, with step 5 saved."""
    run_dir = tmp_path / "run"
    process = train.start(run_dir, faults="step=8:hang")
    assert process.wait_until(lambda: trainer.steps(run_dir) == [5] and trainer.last_logged(run_dir) >= 6), (
        process.wait()
    )
    yield run_dir, process
    if process.is_running():
        process.send(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(train, straight, tmp_path, number):
    step = random.SystemRandom().randrange(20)
    print(f"{step=}")
    process = train.start(tmp_path, "--config.train.steps=2000")
    assert process.wait_until(lambda: trainer.last_logged(tmp_path) >= step + 1)
    process.send(number)
    ended = process.wait()
    assert ended.code == 75, ended.output
    told = re.search(rf"stopped by {number.name} after step (\d+), which is saved; run", ended.output)
    assert told, ended.output
    assert f"{number.name} received: saving step" in ended.output
    assert max(trainer.steps(tmp_path)) == int(told[1]) == trainer.last_logged(tmp_path)
    assert trainer.is_sound(tmp_path)
    assert trainer.leftovers(tmp_path) == []
    both = min(int(told[1]), 30)
    assert trainer.losses(tmp_path)[:both] == trainer.losses(straight)[:both]


def test_the_second_signal_ends_a_run_that_does_not_stop(hung):
    run_dir, process = hung
    process.send(signal.SIGTERM)
    assert process.wait_until(lambda: "SIGTERM received: saving step 8 when it ends" in process.output())
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 75, ended.output
    assert "SIGTERM again: exit now, without saving (the last checkpoint is whole)" in ended.output
    assert trainer.steps(run_dir) == [5]
    assert trainer.is_sound(run_dir)


def test_the_directory_of_a_running_trainer_is_refused(train, hung):
    run_dir, process = hung
    ended = train(run_dir, python=("-X", "importtime"))
    assert ended.code == 75, ended.output
    assert f"in use by process {process.pid} on {platform.node()}; wait until it ends" in ended.output
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", ended.output, re.MULTILINE))
    assert "moejax.training.run_lock" in imported
    assert "jax" not in imported
    assert process.is_running()
    process.send(signal.SIGKILL)
    process.wait()
    # its lock is stale now
    ended = train(run_dir, faults="step=6:kill")
    assert ended.code == -signal.SIGKILL
    assert "going on from step 5" in ended.output
