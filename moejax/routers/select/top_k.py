"""Top-k selection.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), eq. 5: the k experts with the
highest choice; gates are their scores, renormalised to sum 1 as in Mixtral (arXiv 2401.04088), then scaled.
With `stop_gradient` the sum is a constant to the gradient, as in Dynamic-DINO (Lu et al. 2025,
arXiv 2507.17436): the gates are the same, but experts that were not chosen compete in the gradient.

Differs from the papers: the softmax comes before the choice (Mixtral's softmax over the chosen logits is the
same as `renormalise`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.ops.norm import to_sum_one
from moejax.routers.select.slots import filled, ranked
from moejax.seams import Selector

TINY = 1e-30  # sums below it come from saturated scores; their slopes would overflow


@dataclasses.dataclass(frozen=True)
class TopK(Selector):
    k: int  # experts per token
    renormalise: bool = True  # gates of a token sum to `scale`
    scale: float = 1.0  # Dynamic-DINO: k
    stop_gradient: bool = False  # through the sum of `renormalise`

    causal = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(
            self.renormalise or not self.stop_gradient,
            "selector.stop_gradient=True needs selector.renormalise=True; set it, or stop_gradient=False",
        )

    @property
    def num_slots(self) -> int:
        return self.k

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        expert_BTK, full_BTK = ranked(choice_BTE, valid_BT, self.k)
        expert_BTK, gate_BTK = filled(score_BTE, expert_BTK, full_BTK)
        if self.stop_gradient:
            sum_BT1 = jax.lax.stop_gradient(jnp.sum(gate_BTK, axis=-1, keepdims=True))
            gate_BTK = gate_BTK / jnp.maximum(sum_BT1, TINY)
        elif self.renormalise:
            gate_BTK = to_sum_one(gate_BTK)
        return expert_BTK, gate_BTK * self.scale, {}
