"""One small run, and what happens when its command is given again, as it was or changed."""

import dataclasses
import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import pytest

from moejax import overrides
from moejax.config import CheckpointConfig
from moejax.errors import CheckpointError, UsageError
from moejax.losses.next_token import NextToken
from moejax.training import loop, metrics
from moejax.training.checkpoint import Checkpointer
from moejax.training.loop import Result, train
from tests.faults import recipe
from tests.faults.conftest import write_text

EVERY_TWO = {
    "train.steps": "6",
    "train.eval_every": "2",
    "train.checkpoint.every": "2",
    "train.eval_rows": "8",
}


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished run."""

    resolved: overrides.Resolved
    result: Result
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("loop")
    write_text(folder / "text.py")
    data = {"data.source": f"{folder}/text.py,{folder}/empty.py", "data.cache_dir": str(folder / "cache")}
    (folder / "empty.py").write_text("")
    resolved = overrides.resolve(recipe.config(), "recipe", EVERY_TWO | data)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("moejax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return Done(resolved, train(resolved, folder / "run"), "\n".join(said))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def run_dir(done, tmp_path) -> pathlib.Path:
    """A copy of the finished run."""
    return shutil.copytree(done.result.run_dir, tmp_path / "run")


def evaluations(run_dir) -> list[tuple[int, float]]:
    return [(line["step"], line["eval/loss"]) for line in metrics.read(run_dir) if "eval/loss" in line]


def test_a_checkpoint_knows_how_good_it_is(done):
    checkpoints = Checkpointer(done.result.run_dir, CheckpointConfig(), read_only=True)
    meta = {step: checkpoints.restore_meta(step) for step in checkpoints.steps()}
    metric = [(step, one["metric"]) for step, one in meta.items() if "metric" in one]
    assert metric == evaluations(done.result.run_dir)[:-1]  # the last has seen other rows
    assert list(meta) == [2, 4, 6]
    assert ["result" in one for one in meta.values()] == [False, False, True]
    assert meta[6]["result"]["eval/bits_per_byte"] == done.result.bits_per_byte


def test_long_silences_and_what_was_left_out_are_announced(done):
    lines = done.said.splitlines()
    begins = [
        "using 1 of 8 devices",
        "reading the text",
        "records left out: ",
        "compressing",
        "compiling",
        "writing text",
    ]
    found = [next(i for i, line in enumerate(lines) if line.startswith(words)) for words in begins]
    assert found == sorted(found)
    assert sum(line.startswith("records left out") for line in lines) == 2


def test_the_same_command_again_measures_nothing_again(done, run_dir, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda *args: pytest.fail("evaluated again"))
    again = train(done.resolved, run_dir)
    assert again.bits_per_byte == done.result.bits_per_byte
    assert metrics.read(run_dir) == metrics.read(done.result.run_dir)


def test_fewer_steps_than_were_made_are_refused(done, run_dir):
    fewer = overrides.reapply(done.resolved, {"train.steps": "4"})
    before = (run_dir / "config.json").read_text()
    with pytest.raises(UsageError, match=r"at step 6, train\.steps=4; raise --config\.train\.steps"):
        train(fewer, run_dir)
    assert (run_dir / "config.json").read_text() == before


def test_a_checkpoint_that_does_not_fit_leaves_the_settings_as_they_were(done, run_dir):
    config = done.resolved.config
    other = dataclasses.replace(
        config, train=dataclasses.replace(config.train, losses=(NextToken(), Biased()))
    )
    before = (run_dir / "config.json").read_text()
    with pytest.raises(CheckpointError, match="was saved by another model"):
        train(overrides.resolve(other, "other", {}), run_dir)
    assert (run_dir / "config.json").read_text() == before
    assert json.loads(before)["config"]["train"]["steps"] == 6


@dataclasses.dataclass(frozen=True)
class Biased(NextToken):
    """A loss that remembers something, and so has a place in the checkpoint."""

    def init(self, m):
        return {"memory": jnp.zeros(3)}
