"""Tsallis-entropy hybrid: all experts for an undecided token, the best few for a decided one.

DynMoLE: Boosting Mixture of LoRA Experts Fine-Tuning with a Hybrid Routing Mechanism (Li et al. 2025,
arXiv 2504.00661): with H the normalised Tsallis entropy of the token's probabilities, H > threshold takes
every expert; otherwise those whose cumulative probability, best first, does not exceed p, and always the
first `keep`. Gates are the probabilities, without renormalisation.

Differs from the paper: at most k experts (E for the paper's meaning); scores that do not sum to 1 are divided
by their sum before the choice.
"""

import dataclasses

import jax.numpy as jnp

from moejax.config import require
from moejax.ops.entropy import check_index, tsallis
from moejax.routers.select.slots import filled, ranked, shares
from moejax.seams import Selector


@dataclasses.dataclass(frozen=True)
class TsallisHybrid(Selector):
    k: int  # slots: most experts per token
    keep: int = 2  # experts of a decided token at least
    p: float = 0.75  # probability that they may have together; unlike in top-p, none may cross it
    threshold: float = 0.9  # of the normalised entropy; 1 never takes all, below 0 always does
    q: float = 1.1  # index of the entropy; 1 is Shannon's
    eps: float = 1e-5  # added to every probability in the entropy

    causal = True

    def __post_init__(self):
        require(
            1 <= self.keep <= self.k,
            f"selector.keep={self.keep} experts in selector.k={self.k} slots is impossible; "
            f"choose 1 <= keep <= {self.k}",
        )
        require(0 <= self.p <= 1, f"selector.p={self.p} must lie between 0 and 1")
        check_index(self.q, self.eps)

    @property
    def num_slots(self) -> int:
        return self.k

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        expert_BTK, full_BTK = ranked(choice_BTE, valid_BT, self.k)
        share_BTE = shares(choice_BTE)
        share_BTK = jnp.take_along_axis(share_BTE, expert_BTK, axis=-1)
        few_BTK = jnp.cumsum(share_BTK, axis=-1) <= self.p
        few_BTK |= jnp.arange(self.k)[None, None] < self.keep
        if self.threshold < 1:  # eps lifts the entropy of a uniform token slightly above 1
            few_BTK |= (tsallis(share_BTE, self.q, self.eps) > self.threshold)[..., None]
        expert_BTK, gate_BTK = filled(score_BTE, expert_BTK, full_BTK & few_BTK)
        return expert_BTK, gate_BTK, {}
