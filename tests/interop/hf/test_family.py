"""Families: found by name, and the groups that their layers make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.interop.hf import families
from moejax.interop.hf.family import groups_of


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
