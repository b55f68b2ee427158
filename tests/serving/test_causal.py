"""Models whose training looks at later tokens: served without drops, or refused."""

import dataclasses

import pytest

from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.soft import Soft
from moejax.routers.select.capacity import Capacity
from moejax.routers.select.expert_choice import ExpertChoice
from moejax.routers.select.top_k import TopK
from moejax.serving.causal import causal
from moejax.serving.generate import generate


def with_ffn(model, change):
    """`model` with other layers; the parameters stay."""
    (group,) = model.cfg.groups
    blocks = tuple(dataclasses.replace(block, ffn=change(block.ffn)) for block in group.blocks)
    cfg = dataclasses.replace(model.cfg, groups=(dataclasses.replace(group, blocks=blocks),))
    return dataclasses.replace(model, cfg=cfg)


def selecting(model, selector):
    return with_ffn(model, lambda moe: dataclasses.replace(moe, selector=selector))


def test_a_causal_model_stays_as_it_is(model):
    assert causal(model).cfg == model.cfg


def test_a_capacity_is_for_training(model):
    """Text is that of the selector within, whatever else is in the batch."""
    limited = selecting(model, Capacity(TopK(2), factor=0.1))
    assert causal(limited).cfg == model.cfg
    assert generate(limited, ["a"], max_tokens=3) == generate(model, ["a"], max_tokens=3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ExpertChoice", lambda moe: dataclasses.replace(moe, selector=ExpertChoice(2))),
        ("Soft", lambda moe: Soft(moe.num_experts, moe.hidden, slots=1, dispatch=Local())),
    ],
)
def test_what_must_see_later_tokens_is_refused(model, name, change):
    with pytest.raises(UsageError, match=f"the model routes by {name}, which looks at later tokens"):
        generate(with_ffn(model, change), ["a"], max_tokens=3)
