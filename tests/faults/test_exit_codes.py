"""Each way to end has its own exit code and says what to do; F12 and F13: the data and settings of a run."""

import shutil

import pytest

from tests.faults import trainer
from tests.faults.trainer import Trainer

BROKEN = """
import dataclasses
from configs import base
from moejax.losses.next_token import NextToken

@dataclasses.dataclass(frozen=True)
class Broken(NextToken):
    def total(self, *args, **kwargs):
        return 1 / 0

def config():
    run = base.tiny()
    return dataclasses.replace(run, train=dataclasses.replace(run.train, losses=(Broken(),)))
"""


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--wrokdir=x", "unknown flag --wrokdir; did you mean --workdir?"),
        ("--config.train.stepz=3", "did you mean"),
        ("--config.train.steps=many", "train.steps"),
        ("--config.train.accumulate=3", "train.accumulate=3"),
        ("--config.mesh.data=3", "mesh.data"),
    ],
)
def test_wrong_usage(train, tmp_path, flag, told):
    ended = train(tmp_path / "run", flag)
    assert ended.code == 2, ended.output
    assert told in ended.output
    assert not (tmp_path / "run").exists()


def test_no_data(train, tmp_path):
    ended = train(tmp_path, f"--config.data.source={tmp_path}/nothing.txt")
    assert ended.code == 65, ended.output
    assert "nothing.txt' matches no file" in ended.output


def test_a_bug(train, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = train(tmp_path, config=str(tmp_path / "broken.py"))
    assert ended.code == 70, ended.output
    assert "internal error: ZeroDivisionError" in ended.output
    assert "ZeroDivisionError" in (tmp_path / "crash.txt").read_text()


def test_a_hang(train, tmp_path):
    # no report in the first steps: what TensorBoard imports then takes a busy machine many seconds
    flags = ("--config.train.watchdog_seconds=15", "--config.train.log_every=100")
    ended = train(tmp_path, *flags, faults="step=8:hang")
    assert ended.code == 77, ended.output
    assert "the run hangs; the stacks of its threads are in" in ended.output
    (stacks,) = tmp_path.glob("stacks-*.txt")
    assert "strike" in stacks.read_text()
    assert trainer.steps(tmp_path) == [5]


def test_a_run_goes_on_only_as_what_it_was(train, straight, tmp_path):
    text, run_dir = tmp_path / "text.py", tmp_path / "run"
    shutil.copy(train.text, text)
    own = Trainer(text, train.cache)
    assert own(run_dir, "--config.train.steps=20", faults="step=7:term").code == 75

    content = text.read_text()
    text.write_text(content + "\nx = 1\n")
    ended = own(run_dir)
    assert ended.code == 65, ended.output
    assert "fingerprint" in ended.output
    assert f"changed: {text}" in ended.output

    text.write_text(content)
    ended = own(run_dir, "--config.model.groups[0].blocks[0].ffn.hidden=32", "--config.train.seed=3")
    assert ended.code == 66, ended.output
    assert "config.model.groups[0].blocks[0].ffn.hidden was 16, is now 32" in ended.output
    assert "config.train.seed was 0, is now 3" in ended.output

    # more steps are no other run
    ended = own(run_dir)
    assert ended.code == 0, ended.output
    assert trainer.differing(trainer.saved(run_dir), trainer.saved(straight)) == []
