"""One small model for all serving tests, so that its programs are compiled once."""

import dataclasses

import jax
import pytest

from configs import base
from moejax.model.forward import init
from moejax.serving.model import Model
from moejax.training.data.tokenizer import byte_tokenizer


@pytest.fixture(scope="session")
def model():
    """The tiny model, untrained; untied, because with tied embeddings it only repeats itself."""
    cfg = dataclasses.replace(base.tiny().model, tied=False)
    return Model(cfg, init(jax.random.key(0), cfg), byte_tokenizer(), context=32)
