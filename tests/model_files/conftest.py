"""One small model, in the layout of the hub and as moejax.save writes it."""

from pathlib import Path

import jax
import pytest

import moejax
from configs import base
from moejax import overrides
from moejax.interop.hf import directory
from moejax.training.checkpoint import Checkpointer
from moejax.training.data.tokenizer import byte_tokenizer

CONFIG = {
    "model_type": "mixtral",
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def model() -> moejax.Model:
    m = directory.describe(CONFIG, "test").model
    return moejax.Model(m, moejax.init(jax.random.key(0), m), byte_tokenizer(), context=64)


@pytest.fixture
def hub_directory(model, tmp_path) -> Path:
    """In several shards."""
    moejax.save(model, tmp_path / "hub", format="hf", max_shard_bytes=40_000)
    return tmp_path / "hub"


@pytest.fixture
def run_directory(tmp_path) -> Path:
    """Of a training run with two checkpoints."""
    run, path = base.tiny(), tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(overrides.dumps(overrides.resolve(run, "test", {})))
    byte_tokenizer().save(path / "tokenizer.json")
    state = {"params": moejax.init(jax.random.key(0), run.model), "loss_state": ((), (), ())}
    with Checkpointer(path, run.train.checkpoint) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, state, {})
        checkpoints.wait()
    return path


@pytest.fixture
def own_directory(model, tmp_path) -> Path:
    moejax.save(model, tmp_path / "own")
    return tmp_path / "own"
