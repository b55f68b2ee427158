"""The directory of checkpoints: the policy, the order, and a process that dies at every point of a commit."""

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax import durable
from moejax.config import CheckpointConfig
from moejax.training import faults, manifest, step_store
from moejax.training.manifest import Manifest
from moejax.training.step_store import StepStore, kept_steps, verify_run

# Saves step argv[2] with content argv[3], without jax; keeps the last step only.
SAVE = """
import sys
import numpy as np
from moejax.config import CheckpointConfig
from moejax.training import faults, manifest
from moejax.training.manifest import Manifest
from moejax.training.step_store import StepStore
step = int(sys.argv[2])
store = StepStore(sys.argv[1])
store.clean()
temp = store.new_temp(step)
np.save(temp / "w.npy", np.full(100, int(sys.argv[3])))
faults.reach("arrays_written")
store.commit(temp, Manifest(step, manifest.seal(temp)))
store.prune(CheckpointConfig(keep_last=1))
assert "jax" not in sys.modules
"""


def write_step(store, step, value=0, **meta):
    temp = store.new_temp(step)
    np.save(temp / "w.npy", np.full(100, value))
    store.commit(temp, Manifest(step, manifest.seal(temp), meta=meta))


def read_step(store, step):
    assert manifest.verify(store.path(step)) == []
    return int(np.load(store.path(step) / "w.npy")[0])


def save_elsewhere(run, step, value, point=None):
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    if point:
        env |= {"MOEJAX_TESTING": "1", "MOEJAX_FAULTS": f"point={point}:exit"}
    return subprocess.run([sys.executable, "-c", SAVE, run, str(step), str(value)], env=env).returncode


def leftovers(store):
    return [name for name in os.listdir(store.root) if not name.isdecimal()]


BEFORE_THE_RENAME = faults.POINTS[: faults.POINTS.index("after_rename")]


@pytest.mark.parametrize("point", [point for point in faults.POINTS if point != "old_aside"])
def test_death_at_any_point_leaves_the_old_or_the_new_step(tmp_path, point):
    store = StepStore(tmp_path)
    write_step(store, 1, value=1)
    assert save_elsewhere(tmp_path, 2, 2, point) == faults.EXIT_AT_POINT
    store.clean()
    assert leftovers(store) == []
    newest = store.steps()[-1]
    assert newest == (1 if point in BEFORE_THE_RENAME else 2)
    assert read_step(store, newest) == newest
    assert all(not report.problems for report in verify_run(tmp_path))
    assert save_elsewhere(tmp_path, 2, 3) == 0  # and the run goes on
    assert store.steps() == [2] and read_step(store, 2) == 3


@pytest.mark.parametrize("point", faults.POINTS)
def test_death_while_a_step_is_replaced_leaves_the_old_or_the_new_content(tmp_path, point):
    store = StepStore(tmp_path)
    write_step(store, 2, value=1)
    assert save_elsewhere(tmp_path, 2, 2, point) == faults.EXIT_AT_POINT
    store.clean()
    assert leftovers(store) == []
    assert store.steps() == [2]
    assert read_step(store, 2) == (1 if point in BEFORE_THE_RENAME else 2)


def test_policy_by_hand():
    steps = [10, 20, 30, 40, 50]
    assert kept_steps(steps, CheckpointConfig(keep_last=2)) == {40, 50}
    assert kept_steps(steps, CheckpointConfig(keep_last=1, keep_every=20)) == {20, 40, 50}
    assert kept_steps(steps, CheckpointConfig(keep_last=1), best=10) == {10, 50}
    assert kept_steps(steps, CheckpointConfig(keep_last=9)) == set(steps)
    assert kept_steps([], CheckpointConfig(), best=7) == set()


@given(
    steps=st.sets(st.integers(0, 200), max_size=30),
    last=st.integers(1, 5),
    every=st.integers(0, 20),
    data=st.data(),
)
def test_policy_keeps_what_it_says_and_nothing_else(steps, last, every, data):
    best = data.draw(st.sampled_from(sorted(steps) or [0]))
    cfg = CheckpointConfig(keep_last=last, keep_every=every)
    kept = kept_steps(steps, cfg, best)
    assert kept <= steps
    for step in steps:
        newer = sum(other > step for other in steps)
        assert (step in kept) == (newer < last or step == best or bool(every and step % every == 0))
    assert kept_steps(kept, cfg, best) == kept


def test_a_step_is_no_step_before_its_first_file_goes(tmp_path, monkeypatch):
    store = StepStore(tmp_path)
    write_step(store, 1)
    write_step(store, 2)
    monkeypatch.setattr(
        step_store.shutil, "rmtree", lambda _: pytest.fail("listed") if 1 in store.steps() else None
    )
    store.prune(CheckpointConfig(keep_last=1))
    assert store.steps() == [2] and leftovers(store) == [".trash-1"]


def test_prune_keeps_the_best_by_metric(tmp_path):
    store = StepStore(tmp_path)
    for step, metric in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 1.0), (5, 2.0), (6, None)):
        write_step(store, step, metric=metric)
    assert store.best() == 4  # the newest of equals
    store.prune(CheckpointConfig(keep_last=1, keep_best=True))
    assert store.steps() == [4, 6]


def test_order_is_by_number_whatever_clocks_and_listings_say(tmp_path, monkeypatch):
    store = StepStore(tmp_path)
    clock = time.time
    for step, shift in ((9, 0), (10, -86400), (100, 86400), (11, 0)):
        monkeypatch.setattr(time, "time", lambda shift=shift: clock() + shift)
        write_step(store, step)
        os.utime(store.path(step), (1000 - step, 1000 - step))
    names = os.listdir(store.root)
    for order in itertools.permutations(names):
        monkeypatch.setattr(step_store.os, "listdir", lambda path, order=order: list(order))
        assert store.steps() == [9, 10, 11, 100]
    monkeypatch.undo()
    store.prune(CheckpointConfig(keep_last=2))
    assert store.steps() == [11, 100]


def test_only_committed_names_are_steps(tmp_path):
    store = StepStore(tmp_path)
    assert store.steps() == []
    write_step(store, 0)
    for name in ("7.corrupt-1", ".tmp-8", ".trash-9", ".old-0", "notes", "007", "-3", "5x"):
        (store.root / name).mkdir()
    assert store.steps() == [0]
    store.clean()
    assert sorted(os.listdir(store.root)) == ["-3", "0", "007", "5x", "7.corrupt-1", "notes"]


def test_quarantine_takes_the_next_free_number(tmp_path):
    store = StepStore(tmp_path)
    for number in (1, 2, 3):
        write_step(store, 5, value=number)
        assert store.quarantine(5).name == f"5.corrupt-{number}"
    assert store.steps() == []
    assert store.set_aside() == ["5.corrupt-1", "5.corrupt-2", "5.corrupt-3"]


def test_verify_run_reports_every_step(tmp_path):
    store = StepStore(tmp_path)
    for step in (5, 20, 100):
        write_step(store, step)
    (store.path(20) / "w.npy").unlink()
    store.quarantine(20)
    (store.path(100) / "w.npy").write_bytes(b"")
    reports = verify_run(tmp_path)
    assert [report.name for report in reports] == ["5", "20.corrupt-1", "100"]
    assert [[p.file for p in report.problems] for report in reports] == [[], ["w.npy"], ["w.npy"]]
    assert verify_run(tmp_path / "nothing") == []


def test_a_step_whose_name_is_not_on_disk_is_not_committed(tmp_path, monkeypatch):
    store = StepStore(tmp_path)
    write_step(store, 1)
    sync = durable.sync

    def fail_at_the_root(path):
        if path == store.root:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(durable, "sync", fail_at_the_root)
    for step in (1, 2):
        with pytest.raises(OSError):
            write_step(store, step, value=7)
        assert store.steps() == [1] and read_step(store, 1) == 0
