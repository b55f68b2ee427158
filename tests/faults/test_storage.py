"""F4, F7, F8 and F14: full disks, damaged checkpoints, clocks that lie."""

import os
import random
import subprocess

import pytest

from tests.faults import trainer
from tests.faults.trainer import cut


def damage(run_dir, step: int) -> str:
    """Change one byte of the largest file of a checkpoint; its path within the step."""
    root = run_dir / "checkpoints" / str(step)
    path = max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.relative_to(root).as_posix()


@pytest.fixture
def full_disk(tmp_path):
    """A directory on a disk that has room for the lock, and for little else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    (disk / "filler").write_bytes(bytes(52 * 1024))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_from_the_beginning(train, full_disk):
    ended = train(full_disk)
    assert ended.code == 74, ended.output
    assert f"the disk of {full_disk} is full" in ended.output
    assert "No space left on device" in ended.output


def test_a_save_on_a_full_disk_is_lost_and_the_next_is_not(train, straight, tmp_path):
    ended = train(tmp_path, "--config.train.checkpoint.keep_last=100", faults="save=2:enospc")
    assert ended.code == 0, ended.output
    assert ended.output.count("checkpoint of step 10 was not saved: the disk of") == 1
    assert trainer.steps(tmp_path) == [5, 15, 20, 25, 30]
    assert trainer.leftovers(tmp_path) == []
    assert trainer.differing(trainer.saved(tmp_path), trainer.saved(straight)) == []


def test_a_full_disk_stops_a_run_that_asks_for_it(train, tmp_path):
    ended = train(tmp_path, "--config.train.checkpoint.on_disk_full=stop", faults="save=2:enospc")
    assert ended.code == 74, ended.output
    assert "checkpoint of step 10 was not saved: the disk of" in ended.output.splitlines()[-1]
    assert trainer.steps(tmp_path) == [5]
    assert trainer.leftovers(tmp_path) == []


def test_a_damaged_checkpoint_is_set_aside(train, straight, tmp_path):
    run_dir = cut(straight, tmp_path / "run", 15)
    name = damage(run_dir, 15)
    ended = train(run_dir)
    assert ended.code == 0, ended.output
    assert f"15.corrupt-1/{name}" in ended.output
    assert "going on from step 10" in ended.output
    assert trainer.leftovers(run_dir) == ["15.corrupt-1"]
    assert trainer.differing(trainer.saved(run_dir), trainer.saved(straight)) == []
    assert trainer.losses(run_dir) == trainer.losses(straight)


def test_damage_everywhere_ends_the_run(train, straight, tmp_path):
    run_dir = cut(straight, tmp_path / "run", 10)
    for step in (5, 10):
        damage(run_dir, step)
    for _ in range(2):  # the second start finds both set aside, and begins at step 0 no more than the first
        ended = train(run_dir)
        assert ended.code == 66, ended.output
        assert "can be trusted, all are damaged: 10" in ended.output
        assert trainer.steps(run_dir) == []


def test_steps_are_ordered_by_number(train, straight, tmp_path):
    run_dir = cut(straight, tmp_path / "run", 15)
    times = random.Random(0).sample(range(10**9), 3)
    for step, when in zip((5, 10, 15), sorted(times, reverse=True), strict=True):
        for path in (run_dir / "checkpoints" / str(step)).rglob("*"):
            os.utime(path, (when, when))
        os.utime(run_dir / "checkpoints" / str(step), (when, when))
    ended = train(run_dir, faults="step=18:term")
    assert ended.code == 75, ended.output
    assert "going on from step 15" in ended.output
    assert trainer.losses(run_dir) == trainer.losses(straight)[:18]
