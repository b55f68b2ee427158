"""Damaged checkpoints: found, named, set aside, and never mistaken for a fresh start."""

import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import CheckpointConfig
from moejax.errors import CheckpointError
from moejax.training import manifest
from moejax.training.checkpoint import Checkpointer

CFG = CheckpointConfig(keep_last=3)
SHAPE = {"w": jax.ShapeDtypeStruct((64,), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}


def state_of(step):
    return {"w": jax.random.normal(jax.random.key(step), (64,)), "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    checkpoints = Checkpointer(run, CFG)
    for step in (10, 20, 30):
        checkpoints.save(step, state_of(step), {"step": step})
    checkpoints.wait()
    return run


@pytest.fixture
def run(saved_run, tmp_path):
    """A run with the steps 10, 20 and 30."""
    return shutil.copytree(saved_run, tmp_path / "run")


def step_path(run, step):
    return Path(run) / "checkpoints" / str(step)


def path_size(path):
    return path.stat().st_size


def files_of(run, step):
    return sorted(path for path in step_path(run, step).rglob("*") if path.is_file())


def assert_is(restored, step):
    assert (restored.step, restored.meta, int(restored.state["step"])) == (step, {"step": step}, step)
    np.testing.assert_array_equal(restored.state["w"], state_of(step)["w"])


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_no_flipped_bit_is_silent(run):
    """300 single flips, spread over the bytes of all files: each is found, or changes nothing."""
    bits = [(path, bit) for path in files_of(run, 30) for bit in range(8 * path_size(path))]
    healthy = manifest.read(step_path(run, 30))
    for index in np.random.default_rng(0).integers(len(bits), size=300):
        path, bit = bits[index]
        flip(path, bit)
        problems = manifest.verify(step_path(run, 30))
        if problems:
            assert [problem.file for problem in problems] == [path.relative_to(step_path(run, 30)).as_posix()]
        else:
            assert path.name == manifest.NAME and manifest.read(step_path(run, 30)) == healthy
        flip(path, bit)
    assert_is(Checkpointer(run, CFG).restore(SHAPE), 30)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def zero_tail(path):
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(path.stat().st_size - half))


def delete(path):
    path.unlink()


def replace_by_another_steps(path):
    other = Path(str(path).replace("/30/", "/20/"))
    path.write_bytes(next(other.parent.iterdir()).read_bytes() if not other.exists() else other.read_bytes())


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def make_unreadable(path):
    path.unlink()
    path.mkdir()  # opening a directory fails for everyone, root included


DAMAGES = (truncate, empty, zero_tail, delete, grow, make_unreadable, replace_by_another_steps)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damaged_file_is_named(run, damage, tmp_path):
    """One file at a time; `verify` names it and no other, and the step before it is restored."""
    for number in range(len(files_of(run, 30))):
        copy = shutil.copytree(run, tmp_path / f"copy{number}")
        path = files_of(copy, 30)[number]
        name = path.relative_to(step_path(copy, 30)).as_posix()
        before = path.read_bytes()
        damage(path)
        if path.is_file() and path.read_bytes() == before:
            continue  # a file that two steps share, or whose tail is zero
        assert [problem.file for problem in manifest.verify(step_path(copy, 30))] == [name]
        assert_is(Checkpointer(copy, CFG).restore(SHAPE), 20)
        assert sorted(os.listdir(copy / "checkpoints")) == ["10", "20", "30.corrupt-1"]


def test_the_newest_two_of_three_are_damaged_then_all(run, caplog):
    for step in (20, 30):
        flip(next(step_path(run, step).glob("arrays/ocdbt.process_0/d/*")), 100)
    with caplog.at_level(logging.WARNING):
        assert_is(Checkpointer(run, CFG).restore(SHAPE), 10)
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    for step, warning in zip((30, 20), warnings, strict=True):
        assert (
            f"checkpoint {step} is damaged" in warning
            and f"{step}.corrupt-1" in warning
            and "sha256" in warning
        )
    truncate(files_of(run, 10)[0])
    for _ in range(2):  # and the next start does not take the empty directory for a new run
        with pytest.raises(CheckpointError, match=r"10\.corrupt-1, 20\.corrupt-1, 30\.corrupt-1") as caught:
            Checkpointer(run, CFG).restore(SHAPE)
        assert caught.value.exit_code == 66


def test_a_reader_refuses_as_well_but_moves_nothing(run):
    for step in (10, 20, 30):
        truncate(files_of(run, step)[0])
    with pytest.raises(CheckpointError, match="10, 20, 30"):
        Checkpointer(run, CFG, read_only=True).restore(SHAPE)
    assert sorted(os.listdir(run / "checkpoints")) == ["10", "20", "30"]


def test_a_damaged_step_that_was_asked_for_is_an_error(run):
    path = max(files_of(run, 30), key=path_size)
    truncate(path)
    with pytest.raises(CheckpointError, match=path.name):
        Checkpointer(run, CFG).restore(SHAPE, step=30)
    assert Checkpointer(run, CFG).steps() == [10, 20, 30]


def test_after_quarantine_the_step_can_be_saved_again(run):
    truncate(files_of(run, 30)[0])
    checkpoints = Checkpointer(run, CFG)
    assert_is(checkpoints.restore(SHAPE), 20)
    checkpoints.save(30, state_of(30), {"step": 30})
    assert_is(checkpoints.restore(SHAPE), 30)


@pytest.mark.parametrize("level", ["size", "off"])
def test_what_a_weaker_check_lets_pass_is_still_no_trace(run, level):
    """Without hashes Orbax itself may notice; then the error says what to change."""
    for path in files_of(run, 30):
        if path.name != manifest.NAME:
            zero_tail(path)
    with pytest.raises(CheckpointError, match=f"though it passed train.checkpoint.verify={level}"):
        Checkpointer(run, CheckpointConfig(verify=level)).restore(SHAPE)
