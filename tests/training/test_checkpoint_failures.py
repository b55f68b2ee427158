"""Saves that fail: known at once, cleaned up, counted; the run and its next save go on."""

import contextlib
import errno
import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from moejax import durable
from moejax.config import CheckpointConfig
from moejax.errors import StorageError
from moejax.training import checkpoint, faults, manifest
from moejax.training.checkpoint import Checkpointer
from moejax.training.step_store import StepStore
from tests.own_words import own_words

STATE = {"w": jnp.arange(8.0)}


def entries(run):
    return sorted(os.listdir(run / "checkpoints"))


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def poll_until_it_fails(checkpoints):
    """What a trainer does between saves: it hears of the failure without another save."""
    for _ in range(3000):
        checkpoints.poll()
        if checkpoints.num_failures:
            return
        time.sleep(0.01)


@pytest.fixture
def plan(monkeypatch):
    return lambda text: monkeypatch.setattr(faults, "plan", lambda: faults.parse(text))


@pytest.mark.parametrize("what", ["enospc", "eio", "fail"])
def test_a_failed_save_is_known_at_once_and_the_next_is_kept(tmp_path, plan, caplog, what):
    plan(f"save=2:{what}")
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    checkpoints.save(1, STATE, {})
    checkpoints.save(2, STATE, {})
    poll_until_it_fails(checkpoints)
    assert (checkpoints.num_failures, checkpoints.failures_in_a_row) == (1, 1)
    (line,) = errors(caplog)
    assert line.startswith("checkpoint of step 2 was not saved: ") and "\n" not in line
    assert entries(tmp_path) == ["1"] and checkpoints.latest() == 1
    checkpoints.save(3, STATE, {})
    checkpoints.wait()
    assert entries(tmp_path) == ["1", "3"]
    assert (checkpoints.num_failures, checkpoints.failures_in_a_row) == (1, 0)


def test_a_step_that_failed_can_be_saved_again(tmp_path, plan):
    plan("save=1:eio")
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    for _ in range(2):
        checkpoints.save(1, STATE, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1]


def test_the_third_failure_in_a_row_ends_the_run(tmp_path, plan):
    plan("save=1:eio,save=2:fail,save=4+:eio")
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(max_failures=3))
    for step in range(1, 7):
        checkpoints.save(step, STATE, {})
    with pytest.raises(StorageError, match="3 saves in a row failed") as caught:
        checkpoints.wait()
    assert caught.value.exit_code == 74
    assert checkpoints.steps() == [3]
    assert entries(tmp_path) == ["3"]


def test_a_full_disk_ends_the_run_if_so_configured(tmp_path, plan):
    plan("save=1:eio,save=2:enospc")
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(on_disk_full="stop"))
    checkpoints.save(1, STATE, {})
    checkpoints.save(2, STATE, {})
    with pytest.raises(StorageError, match=r"is full, 32 bytes needed, [0-9,]+ free"):
        checkpoints.wait()


@pytest.mark.parametrize("name", ["_METADATA", "MANIFEST.json", "arrays", ".tmp-2", "checkpoints"])
def test_a_sync_that_fails_fails_the_save(tmp_path, monkeypatch, caplog, name):
    """Of a file of arrays, of the manifest, or of one of the directories up to the last."""
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    checkpoints.save(1, STATE, {})
    checkpoints.wait()

    sync = durable.sync

    def fail(path):
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", fail)
        checkpoints.save(2, STATE, {})
        poll_until_it_fails(checkpoints)
    assert checkpoints.num_failures == 1
    assert "Input/output error" in errors(caplog)[0]
    assert entries(tmp_path) == ["1"]
    checkpoints.save(3, STATE, {})
    checkpoints.wait()
    assert entries(tmp_path) == ["1", "3"]


def test_a_save_can_be_insisted_on(tmp_path, plan):
    plan("save=2:eio")
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    checkpoints.save(1, STATE, {})
    checkpoints.wait_for(1)
    checkpoints.save(2, STATE, {})
    with pytest.raises(StorageError, match="step 2 was not saved, the newest that was is step 1"):
        checkpoints.wait_for(2)


def test_a_writer_that_fails_before_the_copy_lets_the_trainer_go_on(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())

    def fail(*_):
        raise ValueError("cannot write that")

    monkeypatch.setattr(checkpoints._shop.arrays, "write", fail)
    checkpoints.save(1, STATE, {})
    checkpoints.wait()
    assert (checkpoints.num_failures, checkpoints.latest()) == (1, None)


def test_old_steps_that_cannot_be_deleted_do_not_fail_the_save(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(keep_last=1))

    def fail(_):
        raise PermissionError("not yours")

    monkeypatch.setattr(checkpoints._store, "prune", fail)
    for step in (1, 2):
        checkpoints.save(step, STATE, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2] and checkpoints.num_failures == 0
    assert "step 2 is saved, but older checkpoints could not be deleted: not yours" in caplog.text


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of `size` at `path`; skips where it takes more rights than we have."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_and_is_freed(tmp_path, caplog):
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=240_000), jnp.float32)}  # 0.96 MB
    disk = tmp_path / "disk"
    with small_disk(disk, "3m"):
        checkpoints = Checkpointer(disk, CheckpointConfig(keep_last=9))
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state, {})
        poll_until_it_fails(checkpoints)
        assert entries(disk) == ["1", "2", "3"]  # the fourth did not fit, and left nothing behind
        (line,) = errors(caplog)
        assert "step 4" in line and "is full, 960,000 bytes needed, " in line
        subprocess.run(["rm", "-r", str(disk / "checkpoints" / "1")], check=True)
        checkpoints.save(5, state, {})
        checkpoints.wait()
        assert entries(disk) == ["2", "3", "5"]
        assert all(manifest.verify(disk / "checkpoints" / str(step)) == [] for step in (2, 3, 5))


LIMITED = """
import logging, resource, sys
import jax.numpy as jnp, numpy as np
from moejax.config import CheckpointConfig
from moejax.training.checkpoint import Checkpointer
state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=200_000), jnp.float32)}
checkpoints = Checkpointer(sys.argv[1], CheckpointConfig())
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for step, limit in ((1, hard), (2, 100_000), (3, hard)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    checkpoints.save(step, state, {})
    checkpoints.wait()
print(checkpoints.steps(), checkpoints.num_failures)
"""


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 3] 1\n", done.stderr
    (line,) = own_words(done.stderr).splitlines()
    assert "step 2 was not saved: the disk" in line and "800,000 bytes needed" in line
    assert entries(tmp_path) == ["1", "3"]


def test_the_end_of_with_waits_for_the_save(tmp_path, monkeypatch):
    commit = StepStore.commit

    def slow(*args):
        time.sleep(0.3)
        commit(*args)

    monkeypatch.setattr(StepStore, "commit", slow)
    with pytest.raises(ZeroDivisionError), Checkpointer(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, STATE, {})
        raise ZeroDivisionError
    assert entries(tmp_path) == ["1"]


def test_nobody_waits_for_a_lost_process(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "is_loss", lambda error: "by peer" in str(error))
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    with pytest.raises(ValueError, match="by peer"), checkpoints:
        checkpoints._pending = SimpleNamespace(done=SimpleNamespace(wait=lambda: pytest.fail("waited")))
        raise ValueError("connection closed by peer")
