"""Families: found by name, and the groups that their layers make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from moejax.attention.gqa import Gqa
from moejax.attention.mla import Mla
from moejax.config import BlockConfig, Group, ModelConfig
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import families
from moejax.interop.hf.family import groups_of
from moejax.routers.score.linear import Linear
from moejax.routers.select.relu_norm import ReluNorm
from moejax.routers.select.top_p import TopP


def block(hidden: int) -> BlockConfig:
    return BlockConfig(Gqa(1, 1, 2), Dense(hidden))


def shape(pattern: str) -> list[tuple[str, int]]:
    """(blocks, repeat) of the groups of a stack in which letters stand for blocks."""
    groups = groups_of(block(ord(letter)) for letter in pattern)
    return [("".join(chr(own.ffn.hidden) for own in group.blocks), group.repeat) for group in groups]


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("aaaa", [("a", 4)]),
        ("abbbb", [("a", 1), ("b", 4)]),
        ("aaab" * 3, [("aaab", 3)]),
        ("lllllg" * 2 + "ll", [("lllllg", 2), ("l", 2)]),
        ("abab", [("ab", 2)]),
        ("aaabbbbb", [("a", 3), ("b", 5)]),
    ],
)
def test_layers_that_repeat_are_groups(pattern, groups):
    assert shape(pattern) == groups


@given(st.text("abc", min_size=1, max_size=12))
def test_groups_give_the_layers_back(pattern):
    assert "".join(blocks * repeat for blocks, repeat in shape(pattern)) == pattern


def test_an_unknown_family_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match=r"config.json: the family 'mixtrall' is not known.*mixtral"):
        families.named("mixtrall", "config.json")


def test_a_model_finds_its_family():
    assert families.of_model(base.tiny().model).model_type == "mixtral"


LATENT = Mla(num_heads=2, kv_rank=4, plain_width=4, turned_width=4, value_width=4)
STRANGE = {  # each is a family's own but for one part
    "BlockFFN without positions": (Gqa(2, 1, 4, rope_theta=None), Linear("relu"), ReluNorm(4), False, None),
    "DeepSeek-V2 with a choice by mass": (LATENT, Linear(), TopP(2), True, Dense(8)),
}


@pytest.mark.parametrize(("attn", "scorer", "selector", "gated", "shared"), STRANGE.values(), ids=STRANGE)
def test_a_model_of_no_family_is_told_why(attn, scorer, selector, gated, shared):
    ffn = Moe(4, 8, scorer, selector, Local(), gated=gated, shared_expert=shared)
    m = ModelConfig(32, 16, (Group((BlockConfig(attn, ffn),), 2),))
    with pytest.raises(UsageError) as error:
        families.of_model(m)
    assert all(f"\n{name}: " in str(error.value) for name in families.families())
