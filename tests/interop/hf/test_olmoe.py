"""OLMoE, as transformers has it."""

import pytest

from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
CASES = {
    "clipped, raw gates": {"clip_qkv": 0.5, "rms_norm_eps": 1e-3},
    "tied, biases, gates of sum 1": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "norm_topk_prob": True,
        "num_key_value_heads": 4,
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.OlmoeConfig(**TINY | own), tmp_path)
