"""SparseMixer selection: one expert after the other, each gate a share among those that came close.

Sparse Backpropagation for MoE Training (Liu et al. 2023, arXiv 2310.00811) and GRIN: GRadient-INformed MoE
(Liu et al. 2024, arXiv 2409.12136), as Phi-3.5-MoE (arXiv 2404.14219) was trained. For each slot, with s the
logits of the experts that are left and s* the highest of them:

    near = experts with s* - s <= 2 jitter max(|s|, s*)        the expert is the best one
    gate = exp(s*) / sum over the near experts of exp(s)       so 1 where no other comes near

Gates of a token do not sum to 1: each is a share of its own.

Differs from the papers: this is what they do in inference. In training too the best expert is taken, and the
slope of its gate is that of the shares; the papers draw the expert from the shares and correct the slope.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.routers.select.slots import filled, ranked
from moejax.seams import Selector


@dataclasses.dataclass(frozen=True)
class SparseMixer(Selector):
    k: int = 2  # experts per token
    jitter: float = 0.01  # how far from the best logit is near, relative to their size

    causal = True
    signed = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(self.jitter >= 0, f"selector.jitter={self.jitter} must not be negative")

    @property
    def num_slots(self) -> int:
        return self.k

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        expert_11E = jnp.arange(score_BTE.shape[-1])[None, None]
        slots = []
        for _ in range(self.k):
            expert_BT1, full_BT1 = ranked(choice_BTE, valid_BT, 1)
            slots.append(filled(self._shares(score_BTE, choice_BTE), expert_BT1, full_BT1))
            choice_BTE = jnp.where(expert_11E == expert_BT1, -jnp.inf, choice_BTE)
        expert_BTK, gate_BTK = (jnp.concatenate(parts, axis=-1) for parts in zip(*slots, strict=True))
        return expert_BTK, gate_BTK, {}

    def _shares(self, score_BTE, choice_BTE):
        """Softmax over the experts near the best choice; others have none."""
        lowest = jnp.finfo(choice_BTE.dtype).min  # finite: there may be no expert left
        left_BTE, choice_BTE = choice_BTE > -jnp.inf, jnp.maximum(choice_BTE, lowest)
        best_BT1 = jnp.max(choice_BTE, axis=-1, keepdims=True)
        near_BTE = best_BT1 - choice_BTE <= 2 * self.jitter * jnp.maximum(jnp.abs(choice_BTE), best_BT1)
        return jax.nn.softmax(jnp.where(left_BTE & near_BTE, score_BTE, lowest))
