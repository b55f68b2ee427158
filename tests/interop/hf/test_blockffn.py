"""BlockFFN in the layout of its releases, against numpy."""

import pytest

from moejax.errors import UsageError
from moejax.interop.hf import directory
from tests.interop.hf import released
from tests.oracles import blockffn

GROUPED = {  # the settings of a release, made small
    "architectures": ["MiniCPMForCausalLM"],
    "model_type": "minicpm",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_type": "vanilla",
    "block_implementation": "torch",
    "dim_model_base": 16,
    "expert_size": 8,
    "ffn_gated": True,
    "ffn_type": "block_linear",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "norm_after_router": "rms",
    "norm_scale": 1.0,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_act": "relu",
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": True,
    "vocab_size": 96,
}
LATENT = GROUPED | {
    "attention_type": "mla",
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("config", [GROUPED, LATENT], ids=["2.8B, grouped heads", "1.2B, latent"])
def test_parity(config, tmp_path):
    released.check(blockffn, config, tmp_path)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ffn_type": "moe"}, r"ffn_type='moe' is not supported; it may be 'block_linear'"),
        ({"norm_after_router": None}, r"norm_after_router='sum' is not supported; it may be 'rms'"),
        ({"block_implementation": "megablocks"}, r"block_implementation='megablocks' is not supported"),
    ],
)
def test_what_was_never_released_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        directory.describe(GROUPED | own, "config.json")
