"""The `tiny` run of every paper's recipe learns: after 200 steps it beats all models of byte frequencies."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from moejax import recipes
from moejax.training import program
from moejax.training.data import corpus
from moejax.training.feed import Feed
from tests.contracts import tiny

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
PAPERS = (
    "blockffn",
    "duo_llm",
    "journey_matters",
    "openmoe",
    "read_me",
    "rmoe",
    "similarity_attention_smoe",
    "smallthinker",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    """A few files of the standard library, and a cache that all recipes of this process share."""
    folder = pathlib.Path(json.__file__).parent
    cache = tmp_path_factory.mktemp("corpora")
    return {"source": tuple(map(str, sorted(folder.glob("*.py")))), "cache_dir": str(cache)}


def entropy(target_N) -> float:
    """In nats, of how often each token occurs: the loss of a model that knows nothing else."""
    share_V = np.bincount(target_N) / target_N.size
    return -np.sum(share_V * np.log(share_V, where=share_V > 0, out=np.zeros_like(share_V)))


@pytest.mark.parametrize("name", PAPERS)
def test_the_loss_falls(name, data):
    run = recipes.resolve(f"{CONFIGS / name}.py:tiny", {}).config
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
    bound = program.build(run)
    text = corpus.prepare(run.data, run.model.vocab, run.train.seq_len)
    feed = Feed(bound, text)
    step = bound.jit_step().lower(bound.abstract_state(), bound.abstract_batch()).compile(tiny.QUICK_COMPILE)
    state, losses = bound.init(), []
    for done in range(1, run.train.steps + 1):
        state, metrics = step(state, feed.next(done))
        losses.append(metrics["loss/next_token"])
    losses = np.array(losses)
    assert run.train.steps == 200
    assert int(state.skipped) == 0
    frequencies = entropy(text.train.target_NT[text.train.weight_NT])
    assert np.mean(losses[-20:]) < 0.95 * frequencies < frequencies < np.mean(losses[:5])
