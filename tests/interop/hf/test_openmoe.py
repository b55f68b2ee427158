"""OpenMoE in the layout of its release for PyTorch, against numpy."""

import numpy as np
import pytest

from moejax import specs
from moejax.errors import UsageError
from moejax.interop.hf import directory
from moejax.interop.hf import openmoe as family
from moejax.model import forward as decoder
from tests.interop.hf import released
from tests.oracles import openmoe

BASE = {  # the settings of the base release, made small
    "architectures": ["OpenMoeForCausalLM"],
    "attention_bias": False,
    "dropout_rate": 0.0,
    "head_dim": 8,
    "hidden_act": "swiglu",
    "hidden_size": 24,
    "intermediate_size": 16,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 64,
    "mlp_gated": True,
    "model_type": "llama",
    "moe_layer_interval": 2,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_noisy_policy": None,
    "router_topk": 2,
    "tie_word_embeddings": False,
    "vocab_size": 96,
} | family.TRAINING
THREE = BASE | {"moe_layer_interval": 3, "num_key_value_heads": 2, "tie_word_embeddings": True}


def test_the_triple_gate_by_hand():
    """(a, b) = (2, 0.5) and up 3: 2 * 0.5 / (1 + exp(-0.5)) * 3."""
    eye = np.eye(1)
    got = openmoe.triple_gate(np.ones(1), np.array([[2.0, 0.5]]), 3 * eye, eye)
    assert got == pytest.approx(3 / (1 + np.exp(-0.5)))


@pytest.mark.parametrize("config", [BASE, THREE], ids=["every second layer", "every third, tied, 4 over 2"])
def test_parity(config, tmp_path):
    released.check(openmoe, config, tmp_path)


def test_the_8b_release_has_the_size_of_its_file():
    """47.4 GB in float32, under the names that its first config.json has."""
    first = {
        "intermediate_size": 8192,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "head_dim": 128,
        "num_attention_heads": 24,
        "vocab_size": 256_384,
        "num_experts": 32,
        "topk": 2,
        "capacity_factor_train": 1.25,
        "capacity_factor_eval": 2.0,
        "min_capacity": 4,
        "noisy_policy": None,
        "drop_tks": True,
        "expert_parallel": None,
        "gated": True,
        "moe_layer_interval": 6,
    }
    ends = ("architectures", "dropout_rate", "layer_norm_epsilon", "hidden_act", "max_position_embeddings")
    m = directory.describe({name: BASE[name] for name in ends} | first, "config.json").model
    assert specs.count(decoder.specs(m)) * 4 / 1e9 == pytest.approx(47.4, abs=0.05)
    assert [len(group.blocks) for group in m.groups] == [6]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"rope_theta": 5e5}, r"rope_theta=500000.0 is not supported; it must be 10000.0"),
        ({"hidden_act": "silu"}, r"hidden_act='silu' is not supported; it must be 'swiglu'"),
        ({"router_noisy_policy": "Jitter"}, r"router_noisy_policy='Jitter' is not supported"),
    ],
)
def test_what_was_never_released_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        directory.describe(BASE | own, "config.json")
