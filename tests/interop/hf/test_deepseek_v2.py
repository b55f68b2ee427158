"""DeepSeek-V2 and Lite, as transformers has them."""

import pytest

from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "first_k_dense_replace": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "q_lora_rank": None,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "mscale": 0.5,
    "mscale_all_dim": 0.707,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 64,
}
CASES = {
    "Lite": {"max_position_embeddings": 2560, "rope_parameters": YARN},
    "groups, a latent for queries": {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 3.0,
        "q_lora_rank": 10,
        "n_shared_experts": 1,
        "tie_word_embeddings": True,
        "first_k_dense_replace": 0,
        "num_hidden_layers": 2,
    },
}


def config(**own):
    _, transformers = parity.libraries()
    return transformers.DeepseekV2Config(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(**own), tmp_path)
