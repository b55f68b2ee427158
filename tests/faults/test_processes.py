"""F15: a run of two processes, as one process computes it, and what is left when one of them dies."""

import signal
import socket

import numpy as np
import pytest

from tests.faults import trainer
from tests.faults.trainer import Ended, Trainer


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train_pair(train: Trainer, run_dir, *, faults: str = "") -> list[Ended]:
    """Two processes of one device each; `faults` happen to the second."""
    common = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--config.mesh.data=2")
    pair = [
        train.start(run_dir, *common, f"--process_id={index}", faults=faults if index else "")
        for index in range(2)
    ]
    return [process.wait() for process in pair]


@pytest.fixture(scope="module")
def pair(train, tmp_path_factory):
    """The directory of an undisturbed run of two processes."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    for ended in train_pair(train, run_dir):
        assert ended.code == 0, ended.output
    return run_dir


def test_two_processes_train_like_one(pair, straight):
    two, one = trainer.saved(pair), trainer.saved(straight)
    assert (two.step, two.leaf.keys()) == (one.step, one.leaf.keys())
    loss_two, loss_one = (np.array(trainer.losses(run_dir)) for run_dir in (pair, straight))
    np.testing.assert_array_equal(loss_two[:, 0], loss_one[:, 0])
    np.testing.assert_allclose(loss_two[:, 1], loss_one[:, 1], rtol=1e-6)
    for name, leaf in one.leaf.items():
        if name.startswith("params"):
            # Adam divides by the root of tiny second moments, which magnifies rounding.
            np.testing.assert_allclose(
                two.leaf[name], leaf, rtol=0, atol=1e-4 * np.abs(leaf).max(), err_msg=name
            )


def test_a_killed_process_ends_the_other_and_both_go_on(train, pair, tmp_path):
    run_dir = tmp_path / "run"
    survivor, killed = train_pair(train, run_dir, faults="step=13:kill")
    assert killed.code == -signal.SIGKILL, killed.output
    assert survivor.code == 75, survivor.output
    assert "lost a process of this run" in survivor.output
    assert trainer.is_sound(run_dir)
    for ended in train_pair(train, run_dir):
        assert ended.code == 0, ended.output
    assert trainer.differing(trainer.saved(run_dir), trainer.saved(pair)) == []
    assert trainer.losses(run_dir) == trainer.losses(pair)
    assert trainer.leftovers(run_dir) == []
