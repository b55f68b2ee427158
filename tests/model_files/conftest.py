"""One small model, in the layout of the hub and as moejax.save writes it."""

from pathlib import Path

import jax
import pytest

import moejax
from moejax.interop.hf import directory
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
def own_directory(model, tmp_path) -> Path:
    moejax.save(model, tmp_path / "own")
    return tmp_path / "own"
