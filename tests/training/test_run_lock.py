"""One writer per run: the second is refused by name, the dead are not waited for."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from moejax.errors import RetryError, StorageError
from moejax.training.run_lock import LOCK, OWNER, Owner, RunLock

HOLD = """
import sys
from moejax.training.run_lock import RunLock
assert "jax" not in sys.modules
with RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_owner(directory, owner):
    (directory / OWNER).write_text(json.dumps(dataclasses.asdict(owner)))


def test_the_second_writer_is_told_who_is_first(tmp_path, holder):
    with pytest.raises(RetryError, match=f"process {holder.pid} on {Owner.myself().host}"), RunLock(tmp_path):
        pass
    holder.communicate()  # ends it
    with RunLock(tmp_path):
        assert Owner.read(tmp_path / OWNER) == Owner.myself()
    assert not (tmp_path / OWNER).exists()


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Owner.read(tmp_path / OWNER).pid == holder.pid
    with RunLock(tmp_path):
        assert Owner.read(tmp_path / OWNER) == Owner.myself()


def test_an_unburied_owner_is_dead(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the process table
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"start_time": "1"}, {"boot_id": "another boot"}, {"host": "elsewhere"}])
def test_a_reused_process_id_is_another_process(tmp_path, change):
    parent = dataclasses.replace(Owner.myself(), pid=os.getppid())
    write_owner(tmp_path, dataclasses.replace(parent, **change))
    with RunLock(tmp_path):
        pass


def test_a_deleted_lock_file_lets_nobody_in(tmp_path, holder):
    (tmp_path / LOCK).unlink()
    with pytest.raises(RetryError, match=str(holder.pid)), RunLock(tmp_path):
        pass
    assert Owner.read(tmp_path / OWNER).pid == holder.pid


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[1]"])
def test_a_damaged_owner_file_is_nobody(tmp_path, text):
    (tmp_path / OWNER).write_text(text)
    with RunLock(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be locked"), RunLock(tmp_path / "file" / "run"):
        pass


def test_the_lock_is_reusable_and_exclusive_within_a_process(tmp_path):
    lock = RunLock(tmp_path)
    for _ in range(2):
        with lock, pytest.raises(RetryError, match=str(os.getpid())), RunLock(tmp_path):
            pass
