"""Group-limited top-k: a token's experts come from few groups of experts.

DeepSeek-V2 (arXiv 2405.04434), section 2.2.2, and DeepSeek-V3 (arXiv 2412.19437), section 2.1.2: experts lie
in equal groups, one per device; the best groups of a token are kept, by their best expert (V2) or by their
best two together (V3), and the top-k is taken among theirs. A preference counts in the choice alone; so does
the correction that a trained V3 has learned, one number per expert (eq. 16).

Differs from the papers: nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import require
from moejax.ops.norm import to_sum_one
from moejax.routers.select.slots import filled, ranked
from moejax.seams import Selector
from moejax.specs import Constant, Spec


@dataclasses.dataclass(frozen=True)
class GroupLimited(Selector):
    k: int  # experts per token
    num_groups: int  # V3: 8
    keep_groups: int  # V3: 4
    best: int = 2  # experts that speak for their group: V2 1, V3 2
    renormalise: bool = True  # gates of a token sum to `scale`; V2: False
    scale: float = 1.0  # V2: 16, V3: 2.5
    correction: bool = False  # keep a constant per expert for the choice; no gradient moves it

    causal = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(self.best >= 1, f"selector.best={self.best} must be at least 1")
        require(
            1 <= self.keep_groups <= self.num_groups,
            f"selector.keep_groups={self.keep_groups} of selector.num_groups={self.num_groups} is "
            f"impossible; choose 1 <= keep_groups <= {self.num_groups}",
        )

    @property
    def num_slots(self) -> int:
        return self.k

    def check(self, num_experts: int, scorer) -> None:
        """Refuse experts that do not split into these groups, or too few of them for k."""
        require(
            num_experts % self.num_groups == 0,
            f"ffn.num_experts={num_experts} is not divisible by selector.num_groups={self.num_groups}; "
            "choose a number of groups that divides the experts",
        )
        size = num_experts // self.num_groups
        require(
            self.best <= size,
            f"selector.best={self.best} experts of a group of {size} is impossible; choose best <= {size}",
        )
        require(
            self.k <= self.keep_groups * size,
            f"selector.k={self.k} experts out of selector.keep_groups={self.keep_groups} groups of {size} is "
            f"impossible; choose k <= {self.keep_groups * size}, or keep more groups",
        )

    def check_taken(self, num_experts: int, index_LM) -> None:
        """Refuse experts that would not lie in the same groups as before."""
        G, size = self.num_groups, num_experts // self.num_groups
        M = index_LM.shape[1]
        together = M % G == 0
        if together:
            group_LGe = (index_LM // size).reshape(-1, G, M // G)
            together = bool((group_LGe == group_LGe[..., :1]).all())
            together &= bool((np.sort(group_LGe[..., 0], axis=1) == np.arange(G)).all())
        require(
            together,
            f"ffn.selector=GroupLimited chooses among {G} groups of {size} experts; take as many of each, "
            "those of one group side by side, or choose a selector without groups",
        )

    def specs(self, m, num_experts: int):
        return {"correction": Spec((num_experts,), (None,), Constant(0.0))} if self.correction else {}

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        B, T, E = choice_BTE.shape
        if self.correction:
            choice_BTE = choice_BTE + jax.lax.stop_gradient(p["correction"])[None, None]
        choice_BTPe = choice_BTE.reshape(B, T, self.num_groups, -1)  # a group is a device of the paper
        best_BTPK, _ = jax.lax.top_k(choice_BTPe, self.best)
        allowed_BTPK = best_BTPK > -jnp.inf
        group_BTP = jnp.sum(jnp.where(allowed_BTPK, best_BTPK, 0.0), axis=-1)
        group_BTP = jnp.where(allowed_BTPK[..., 0], group_BTP, -jnp.inf)
        _, kept_BTK = jax.lax.top_k(group_BTP, self.keep_groups)
        kept_BTP = jnp.any(kept_BTK[..., None] == jnp.arange(self.num_groups)[None, None, None], axis=2)
        choice_BTE = jnp.where(kept_BTP[..., None], choice_BTPe, -jnp.inf).reshape(B, T, E)
        expert_BTK, full_BTK = ranked(choice_BTE, valid_BT, self.k)
        expert_BTK, gate_BTK = filled(score_BTE, expert_BTK, full_BTK)
        if self.renormalise:
            gate_BTK = to_sum_one(gate_BTK)
        return expert_BTK, gate_BTK * self.scale, {}
