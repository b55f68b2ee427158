"""Qwen3-MoE, as transformers has it."""

import pytest

from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
}
CASES = {
    "a dense layer in the middle, raw gates": {"mlp_only_layers": [1], "rms_norm_eps": 1e-3},
    "tied, biases, 3 heads over 1, gates of sum 1, a window": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
    },
}


def config(own):
    _, transformers = parity.libraries()
    return transformers.Qwen3MoeConfig(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(own), tmp_path)


def test_gradients(tmp_path):
    parity.check_gradients(config({"mlp_only_layers": [1], "norm_topk_prob": True}), tmp_path)
