"""Models whose training looks at later tokens: served without drops, or refused."""

import dataclasses

import pytest

from moejax.dispatch.adaptive import Adaptive, Mode
from moejax.dispatch.cells import FixedCell
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
    ("dispatch", "dropless"),
    [
        (FixedCell(1.0, chunks=2), FixedCell(chunks=2)),
        (Adaptive((Mode(1.0), Mode(2.0, r=2))), Adaptive((Mode(1.0), Mode(r=2)))),
    ],
)
def test_cells_are_as_many_as_rows_can_come(model, dispatch, dropless):
    limited = with_ffn(model, lambda moe: dataclasses.replace(moe, dispatch=dispatch))
    (group,) = causal(limited).cfg.groups
    assert not dispatch.causal and dropless.causal
    assert [block.ffn.dispatch for block in group.blocks] == [dropless]


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
