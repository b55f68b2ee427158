"""Selectors in a recipe: what cannot work is refused before anything is allocated, with what to change."""

import pytest

from moejax import recipes
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.capacity import Capacity
from moejax.routers.select.expert_choice import ExpertChoice
from moejax.routers.select.group_limited import GroupLimited
from moejax.routers.select.relu_norm import ReluNorm
from moejax.routers.select.top_k import TopK
from moejax.routers.select.top_p import TopP

AT = "model.groups[0].blocks[1].ffn.selector"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("factor", "0", "selector.factor=0.0 must be positive"),
        ("factor", "-1", "selector.factor=-1.0 must be positive"),
        ("group", "devices", "selector.group='devices' is not one of row, shard, global"),
        ("selector.k", "17", "selector.k=17 experts per token out of ffn.num_experts=16"),
        ("selector.k", "0", "selector.k=0 must be at least 1"),
        (
            "capacity",
            "1.5",
            "selector.capacity does not exist\nkeys of .* selector, factor, group, order, rule",
        ),
        ("selector.kk", "3", "selector.kk does not exist; did you mean k"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(field, value, message):
    with pytest.raises(UsageError, match=message):
        recipes.resolve("configs/openmoe.py", {f"{AT}.{field}": value})


@pytest.mark.parametrize("selector", [TopK(5), TopP(5), ReluNorm(5), Capacity(TopK(5)), ExpertChoice(5)])
def test_more_slots_than_experts_are_refused(selector):
    with pytest.raises(UsageError, match=r"selector.k=5 experts per token out of ffn.num_experts=4"):
        Moe(4, 8, Linear("relu"), selector, Local())


@pytest.mark.parametrize("wrap", [lambda selector: selector, Capacity])
def test_a_layer_asks_its_selector(wrap):
    with pytest.raises(UsageError, match=r"num_experts=4 is not divisible by selector.num_groups=3"):
        Moe(4, 8, Linear(), wrap(GroupLimited(2, num_groups=3, keep_groups=2)), Local())
    with pytest.raises(UsageError, match=r"all scores of Linear are positive, so selector ReluNorm"):
        Moe(4, 8, Linear(), wrap(ReluNorm(4)), Local())
