"""Top-p selection: as many experts as the token needs.

Harder Tasks Need More Experts: Dynamic Routing in MoE Models (Huang et al. 2024, arXiv 2403.07652), eq. 3-4:
the smallest set of best experts whose probabilities sum to at least p; gates are their scores.

Differs from the paper: at most k experts, so that slots are static; scores that do not sum to 1 are divided
by their sum before they are compared with p.
"""

import dataclasses

import jax.numpy as jnp

from moejax.config import require
from moejax.ops.norm import to_sum_one
from moejax.routers.select.slots import filled, ranked, shares
from moejax.seams import Selector


@dataclasses.dataclass(frozen=True)
class TopP(Selector):
    k: int  # slots: most experts per token
    p: float = 0.4
    renormalise: bool = False  # gates of a token sum to 1

    causal = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(0 < self.p <= 1, f"selector.p={self.p} must lie above 0 and not above 1; 1 fills all k slots")

    @property
    def num_slots(self) -> int:
        return self.k

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        expert_BTK, full_BTK = ranked(choice_BTE, valid_BT, self.k)
        share_BTK = jnp.take_along_axis(shares(choice_BTE), expert_BTK, axis=-1)
        mass_BTK = jnp.cumsum(share_BTK, axis=-1)
        better_BTK = jnp.pad(mass_BTK[..., :-1], ((0, 0), (0, 0), (1, 0)))  # mass of the experts before
        expert_BTK, gate_BTK = filled(score_BTE, expert_BTK, full_BTK & (better_BTK < self.p))
        return expert_BTK, to_sum_one(gate_BTK) if self.renormalise else gate_BTK, {}
