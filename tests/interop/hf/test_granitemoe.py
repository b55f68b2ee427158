"""Granite-MoE, as transformers has it."""

import dataclasses

import pytest

from configs import base
from moejax.interop.hf import families
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
CASES = {
    "tied, every factor": {"tie_word_embeddings": True},
    "untied, 3 heads over 1, biases, 3 of 5 experts": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "attention_bias": True,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "attention_multiplier": 0.015625,
    },
}
NIGHTLY = {
    "no factor, scaled positions": {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 8**-0.5,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
}


def config(**own):
    _, transformers = parity.libraries()
    return transformers.GraniteMoeConfig(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(**own), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("own", NIGHTLY.values(), ids=NIGHTLY)
def test_parity_of_more(own, tmp_path):
    parity.check(config(**own), tmp_path)


def test_a_model_without_factors_is_a_mixtral():
    model = base.tiny().model
    assert families.of_model(model).model_type == "mixtral"
    assert families.of_model(dataclasses.replace(model, embed_scale=12.0)).model_type == "granitemoe"
