"""Qwen2-MoE, as transformers has it."""

import pytest

from moejax.errors import UsageError
from moejax.interop.hf import qwen2_moe
from moejax.interop.hf.fields import Fields
from moejax.interop.hf.tensor_map import layers
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
}
CASES = {
    "a dense layer in the middle, raw gates": {"mlp_only_layers": [1]},
    "tied, no biases, gates of sum 1, windows": {
        "tie_word_embeddings": True,
        "qkv_bias": False,
        "norm_topk_prob": True,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.Qwen2MoeConfig(**TINY | own), tmp_path)


def windows(**own):
    m = qwen2_moe.read(Fields(TINY | own))
    return [block.attn.window for _, block, _ in layers(m)]


def test_every_second_of_the_first_layers_has_a_window():
    used = {"use_sliding_window": True, "sliding_window": 7, "num_hidden_layers": 5}
    assert windows(**used, max_window_layers=3) == [7, None, 7, None, None]
    assert windows(sliding_window=7) == [None] * 3
    with pytest.raises(UsageError, match=r"layer_types has sliding_attention, but"):
        windows(layer_types=["sliding_attention"] * 3)
