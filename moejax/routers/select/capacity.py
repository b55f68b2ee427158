"""Capacity: an expert takes so many tokens of a group and no more; choices beyond that are dropped.

Tutel: Adaptive Mixture-of-Experts at Scale (Hwang et al. 2022, arXiv 2206.03382): the first choices of all
tokens queue before the second choices, each in the order of the batch. An expert of a group of N tokens has
k int(factor ceil(N / E)) slots. OpenMoE (Xue et al. 2024, arXiv 2402.01739) has max(4, round(factor N / E)).
Batch-prioritised routing (Riquelme et al. 2021, arXiv 2106.05974) queues by the largest score instead.

A dropped choice keeps its expert's name, so that losses still count it; its gate is 0, and it is not sent:
`extra["kept_BTK"]` is False. Gates are not renormalised after a drop.

Differs from the papers: any selector makes the choice; absent tokens take no slot; buffers of the dispatch do
not depend on the capacity, so it is not rounded up to their alignment.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.ops.capacity import tutel_slots
from moejax.routers.select.groups import check_group, gathered, over_groups, own
from moejax.seams import Selector


def openmoe_slots(tokens: int, num_experts: int, k: int, factor: float) -> int:
    """Slots of an expert in a group of so many tokens: max(4, round(factor tokens / E)), whatever k is."""
    return max(4, round(factor * tokens / num_experts))


RULES = {"tutel": tutel_slots, "openmoe": openmoe_slots}
ORDERS = ("position", "score")


@dataclasses.dataclass(frozen=True)
class Capacity(Selector):
    selector: Any  # Selector whose choices are limited
    factor: float = 1.0  # slots over what equal use of the experts needs
    group: str = "shard"  # row | shard | global: which tokens share an expert's slots
    order: str = "position"  # position | score: who comes first
    rule: str = "tutel"  # tutel | openmoe: slots from the factor

    causal = False  # second choices queue behind the first choices of later tokens

    def __post_init__(self):
        check_group(self.group)
        for name, known in (("order", ORDERS), ("rule", tuple(RULES))):
            value = getattr(self, name)
            require(
                value in known,
                f"selector.{name}={value!r} is not one of {', '.join(known)}; choose one of them",
            )
        require(
            self.selector.causal,
            f"selector.selector={type(self.selector).__name__} has limits of its own; give Capacity a causal "
            "selector, such as TopK",
        )
        require(
            0 < self.factor < math.inf,
            f"selector.factor={self.factor} must be positive and finite; to drop nothing, use the inner "
            f"{type(self.selector).__name__} without Capacity",
        )

    @property
    def num_slots(self) -> int:
        return self.selector.num_slots

    def check(self, num_experts: int, scorer) -> None:
        self.selector.check(num_experts, scorer)

    def causal_form(self):
        """Without capacity: what is generated must not depend on who else is in the batch."""
        return self.selector.causal_form()

    def specs(self, m, num_experts: int):
        return self.selector.specs(m, num_experts)

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        expert_BTK, gate_BTK, extra = self.selector.select(p, score_BTE, choice_BTE, valid_BT, key)
        place = functools.partial(self._kept, score_BTE.shape[-1])
        urgency_BT = jax.lax.stop_gradient(jnp.max(score_BTE, axis=-1))
        kept_BTK = over_groups(self.group, place, expert_BTK, urgency_BT)
        return expert_BTK, jnp.where(kept_BTK, gate_BTK, 0.0), extra | {"kept_BTK": kept_BTK}

    def _kept(self, E: int, axes, expert_NK, urgency_N):
        """Which choices of a group find a slot."""
        tokens = expert_NK.shape[0] * (jax.lax.axis_size(axes) if axes else 1)
        slots = RULES[self.rule](tokens, E, expert_NK.shape[1], self.factor)
        require(
            slots > 0,
            f"selector.factor={self.factor} leaves {E} experts no slot in a group of {tokens} tokens; "
            "choose a larger factor",
        )
        if self.order == "score":
            first_N = jnp.argsort(-gathered(urgency_N, axes), stable=True)
            place_NK = places(gathered(expert_NK, axes)[first_N], E)
            place_NK = own(place_NK[jnp.argsort(first_N)], axes)
        else:
            place_NK = places(expert_NK, E) + places_before(expert_NK, E, axes)
        return (place_NK < slots) & (expert_NK < E)


def places(expert_NK, num_experts: int):
    """Place of every choice in its expert's queue, from 0: first choices by token, then second choices."""
    expert_R = expert_NK.T.reshape(-1)
    rank_R = jnp.argsort(jnp.argsort(expert_R, stable=True))
    size_E = jnp.sum(count_by_choice(expert_NK, num_experts), axis=0)
    first_E = jnp.cumsum(size_E) - size_E
    return (rank_R - first_E[expert_R]).reshape(expert_NK.shape[::-1]).T


def places_before(expert_NK, num_experts: int, axes):
    """How many choices of other devices queue before each of this device's, beside `places`."""
    if not axes:
        return 0
    size_KE = count_by_choice(expert_NK, num_experts)
    size_PKE = jax.lax.all_gather(size_KE, axes)
    other_KE = jnp.sum(size_PKE, axis=0) - size_KE
    is_before_P = jnp.arange(len(size_PKE)) < jax.lax.axis_index(axes)
    same_choice_KE = jnp.sum(jnp.where(is_before_P[:, None, None], size_PKE, 0), axis=0)
    earlier_choices_KE = jnp.cumsum(other_KE, axis=0) - other_KE
    before_KE = same_choice_KE + earlier_choices_KE
    return before_KE[jnp.arange(expert_NK.shape[1])[None], expert_NK]


def count_by_choice(expert_NK, num_experts: int):
    """Tokens whose choice K is expert E; the last column counts empty slots."""
    hit_NKE = expert_NK[..., None] == jnp.arange(num_experts + 1)[None, None]
    return jnp.sum(hit_NKE, axis=0, dtype=jnp.int32)
