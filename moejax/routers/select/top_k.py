"""Top-k selection.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), eq. 5: the k experts with the
highest choice; gates are their scores, renormalised to sum 1 as in Mixtral (arXiv 2401.04088), then scaled.

Differs from the paper: the softmax comes before the choice (Mixtral's softmax over the chosen logits is the
same as `renormalise`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.ops.norm import to_sum_one


@dataclasses.dataclass(frozen=True)
class TopK:
    k: int  # experts per token
    renormalise: bool = True  # gates of a token sum to `scale`
    scale: float = 1.0

    causal = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")

    @property
    def num_slots(self) -> int:
        return self.k

    def specs(self, m, num_experts: int):
        return {}

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        E = score_BTE.shape[-1]
        best_BTK, expert_BTK = jax.lax.top_k(choice_BTE, self.k)
        full_BTK = valid_BT[..., None] & (best_BTK > -jnp.inf)  # a disallowed expert leaves its slot empty
        gate_BTK = jnp.take_along_axis(score_BTE, expert_BTK, axis=-1)
        gate_BTK = jnp.where(full_BTK, gate_BTK, 0.0)
        if self.renormalise:
            gate_BTK = to_sum_one(gate_BTK)
        return jnp.where(full_BTK, expert_BTK, E), gate_BTK * self.scale, {}
