"""Mixtral, as transformers has it."""

import dataclasses

import pytest

from configs import base
from moejax.errors import UsageError
from moejax.interop.hf import mixtral
from moejax.routers.select.top_k import TopK
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_local_experts": 4,
}
CASES = {
    "untied": {},
    "tied, 3 heads over 1, a window": {
        "tie_word_embeddings": True,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 24,
        "head_dim": 8,
        "sliding_window": 5,
    },
}


def config(**own):
    _, transformers = parity.libraries()
    return transformers.MixtralConfig(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(**own), tmp_path)


def test_gradients(tmp_path):
    parity.check_gradients(config(), tmp_path)


def test_the_peer_of_the_small_recipe():
    config = mixtral.FAMILY.config(base.small().model)
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"] == 512
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    assert config["intermediate_size"] == 1024
    assert config["tie_word_embeddings"] and config["num_hidden_layers"] == 6


def test_another_model_is_refused():
    m = base.tiny().model
    (group,), (block,) = m.groups, m.groups[0].blocks

    def having(ffn):
        blocks = (dataclasses.replace(block, ffn=ffn),)
        return dataclasses.replace(m, groups=(dataclasses.replace(group, blocks=blocks),))

    scaled = having(dataclasses.replace(block.ffn, selector=TopK(2, scale=2.0)))
    with pytest.raises(UsageError, match=r"ffn.selector.scale is 2.0; a mixtral has 1.0"):
        mixtral.FAMILY.config(scaled)
    mixed = dataclasses.replace(m, groups=(*m.groups, *scaled.groups))
    with pytest.raises(UsageError, match="2 kinds of blocks"):
        mixtral.FAMILY.config(mixed)
