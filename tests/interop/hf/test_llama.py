"""Llama, as transformers has it."""

import pytest

from moejax.errors import UsageError
from moejax.interop.hf import llama
from moejax.interop.hf.fields import Fields
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
CASES = {
    "untied": {},
    "tied, biases, 9 heads over 3, Llama 3's positions": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 36,
        "head_dim": 4,
        "rope_parameters": LLAMA3,
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.LlamaConfig(**TINY | own), tmp_path)


def test_positions_that_are_said_twice_are_refused():
    twice = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": LLAMA3}
    with pytest.raises(UsageError, match="has rope_parameters and rope_scaling, its older name; remove one"):
        llama.read(Fields(TINY | twice))
