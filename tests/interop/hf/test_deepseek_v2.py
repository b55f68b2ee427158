"""DeepSeek-V2 and Lite, as transformers has them."""

import dataclasses

import pytest

from moejax import specs as sp
from moejax.errors import UsageError
from moejax.interop.hf import deepseek_v2, directory
from moejax.model import forward as decoder
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


@pytest.mark.nightly
def test_gradients(tmp_path):
    parity.check_gradients(config(**CASES["groups, a latent for queries"]), tmp_path)


# As the files on the hub say it, without what every family overlooks.
LITE = {
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
WHOLE = LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}


def billions(fields) -> tuple[float, float]:
    """Parameters of the model of a config.json: all, and those that a token passes."""
    specs = decoder.specs(directory.describe(fields, "config.json").model)
    return round(sp.count(specs) / 1e9, 1), round(sp.count_active(specs) / 1e9, 1)


def test_the_released_models_have_as_many_parameters_as_their_paper_says():
    """Section 3.1.2: 236B, of which a token passes 21B; appendix B: 15.7B and 2.4B, but for the embedding."""
    assert billions(WHOLE) == (235.7, 21.4)
    assert billions(LITE) == (15.7, 2.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob=True is not supported; it must be False"),
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported; it may be 'greedy'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2 is not supported; it must be 1"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported; it must be 'softmax'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 is not supported; it must be 16"),
        ({"window": 3}, "not known for this family: window=3"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        directory.describe(LITE | change, "config.json")


def test_another_model_is_refused():
    """Shared experts that are no whole number of experts; layers whose attention differs."""
    m = directory.describe(LITE, "config.json").model
    dense, sparse = m.groups
    (block,) = sparse.blocks

    def having(**changes):
        blocks = (dataclasses.replace(block, **changes),)
        return dataclasses.replace(m, groups=(dense, dataclasses.replace(sparse, blocks=blocks)))

    shared = dataclasses.replace(block.ffn.shared_expert, hidden=1409)
    with pytest.raises(UsageError, match=r"shared_expert.hidden=1409 is no multiple of ffn.hidden=1408"):
        deepseek_v2.FAMILY.config(having(ffn=dataclasses.replace(block.ffn, shared_expert=shared)))
    with pytest.raises(UsageError, match=r"layers\[1\].attn.norm_eps is 0.001; a deepseek_v2 has 1e-06"):
        deepseek_v2.FAMILY.config(having(attn=dataclasses.replace(block.attn, norm_eps=1e-3)))
