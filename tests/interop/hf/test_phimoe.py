"""Phi-3.5-MoE, as transformers has it."""

import functools

import pytest

from moejax.interop.hf import phimoe
from moejax.interop.hf.fields import Fields
from moejax.ops.rope import LongRope
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "num_local_experts": 6,
    "router_jitter_noise": 0.3,  # so that several experts come near the best one
    "max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 5.0, 8.0],
    "short_mscale": 1.25,
    "long_mscale": 1.5,
}
LIKE_THE_RELEASE = {"attention_bias": True, "lm_head_bias": True}
CASES = {
    "as released, a short text": LIKE_THE_RELEASE
    | {"rope_parameters": LONG_ROPE | {"original_max_position_embeddings": 32}},
    "tied, no biases, a window": {"tie_word_embeddings": True, "sliding_window": 5},
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.PhimoeConfig(**TINY | own), tmp_path)


def test_parity_of_a_long_text(tmp_path, monkeypatch):
    """The released model turns by the long divisors; transformers forgets to say how long the text is."""
    _, transformers = parity.libraries()
    table = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
    monkeypatch.setitem(table, "longrope", functools.partial(table["longrope"], seq_len=9))
    own = LIKE_THE_RELEASE | {"rope_parameters": LONG_ROPE | {"original_max_position_embeddings": 8}}
    parity.check(transformers.PhimoeConfig(**TINY | own), tmp_path)


def test_the_older_way_to_write_a_config():
    """As the release has it: positions in two places, noise that only training knows."""
    positions = {name: LONG_ROPE[name] for name in ("short_factor", "long_factor")}
    positions |= {"type": "longrope", "short_mscale": 1.24, "long_mscale": 1.24}
    old = {"rope_theta": 1e4, "rope_scaling": positions, "original_max_position_embeddings": 4096}
    fields = Fields(TINY | old | {"input_jitter_noise": 0.01, "hidden_dropout": 0.0})
    (group,) = phimoe.read(fields).groups
    assert fields.context == 64
    fields.done()
    short, long = (tuple(LONG_ROPE[f"{texts}_factor"]) for texts in ("short", "long"))
    assert group.blocks[0].attn.rope_scaling == LongRope(short, long, 4096, 1.24, 1.24)
    assert group.repeat == TINY["num_hidden_layers"]
