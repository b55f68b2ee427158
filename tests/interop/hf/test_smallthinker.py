"""SmallThinker in the layout of its releases, against numpy."""

import pytest

from moejax import specs
from moejax.errors import UsageError
from moejax.interop.hf import directory
from moejax.model import forward as decoder
from tests.interop.hf import released
from tests.oracles import smallthinker

SMALL = {  # the settings of the 4B release, made small
    "architectures": ["SmallThinkerForCausalLM"],
    "model_type": "smallthinker",
    "model_name": "smallthinker_4b_instruct",
    "attention_dropout": 0.0,
    "head_dim": 8,
    "hidden_size": 24,
    "max_length": None,
    "max_position_embeddings": 64,
    "moe_ffn_hidden_size": 16,
    "moe_num_active_primary_experts": 2,
    "moe_num_primary_experts": 4,
    "norm_topk_prob": True,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_layout": [1, 1],
    "rope_scaling": None,
    "rope_theta": 1.5e6,
    "sliding_window_layout": [0, 0],
    "sliding_window_size": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 96,
}
LARGE = SMALL | {  # the 21B pattern, twice
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_layout": [0, 1, 1, 1] * 2,
    "sliding_window_layout": [0, 1, 1, 1] * 2,
    "sliding_window_size": 5,
    "moe_primary_router_apply_softmax": True,
    "tie_word_embeddings": False,
}


PATTERN = [0, 1, 1, 1] * 13
RELEASES = {
    "4B": {
        "hidden_size": 1536,
        "moe_ffn_hidden_size": 768,
        "moe_num_primary_experts": 32,
        "moe_num_active_primary_experts": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_hidden_layers": 32,
        "rope_layout": [1] * 32,
        "sliding_window_layout": [0] * 32,
        "vocab_size": 151_936,
    },
    "21B": {
        "hidden_size": 2560,
        "moe_ffn_hidden_size": 768,
        "moe_num_primary_experts": 64,
        "moe_num_active_primary_experts": 6,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_hidden_layers": 52,
        "rope_layout": PATTERN,
        "sliding_window_layout": PATTERN,
        "vocab_size": 151_936,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["4B, sigmoid", "21B, softmax"])
def test_parity(config, tmp_path):
    released.check(smallthinker, config, tmp_path)


@pytest.mark.parametrize(
    ("name", "billions", "kinds"), [("4B", 4.035, [1]), ("21B", 21.51, [4])], ids=["4B", "21B"]
)
def test_the_releases_have_the_size_that_they_are_known_for(name, billions, kinds):
    """Kinds of layers: one with positions everywhere, the pattern of four."""
    m = directory.describe(SMALL | RELEASES[name], "config.json").model
    assert specs.count(decoder.specs(m)) / 1e9 == pytest.approx(billions, abs=0.005)
    assert [len(group.blocks) for group in m.groups] == kinds


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"rope_layout": [1]},
            r"rope_layout has 1 entries; it needs a 0 or a 1 for each .*layers=2",
        ),
        ({"moe_enable_secondary_experts": True}, r"moe_enable_secondary_experts=True is not supported"),
        ({"norm_topk_prob": False}, r"norm_topk_prob=False is not supported; it must be True"),
    ],
)
def test_what_was_never_released_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        directory.describe(SMALL | own, "config.json")
