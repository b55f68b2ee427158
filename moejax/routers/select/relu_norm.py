"""ReLU and RMSNorm: differentiable routing of free width.

BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity
(Song et al. 2025, arXiv 2507.08771), eq. 2-3: an expert is active where relu(logit) > 0; the gates of a token
are RMSNorm over all E of relu(logits), times a learned scale per expert. No top-k: a token may take none or
all.

Differs from the paper: at most k experts, the best ones (E for the paper's meaning).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.ops.norm import rms_norm
from moejax.routers.select.slots import filled, ranked
from moejax.seams import Selector
from moejax.specs import Constant, Spec


@dataclasses.dataclass(frozen=True)
class ReluNorm(Selector):
    k: int  # slots: most experts per token
    eps: float = 1e-5

    causal = True

    def __post_init__(self):
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(self.eps > 0, f"selector.eps={self.eps} must be positive: a token may take no expert")

    def check(self, num_experts: int, scorer) -> None:
        """Refuse scores that leave no expert out."""
        require(
            scorer.sparse,
            f"all scores of {type(scorer).__name__} are positive, so selector ReluNorm would take every "
            'expert; choose a scorer with activation="relu", or another selector',
        )

    @property
    def num_slots(self) -> int:
        return self.k

    def specs(self, m, num_experts: int):
        return {"scale": Spec((num_experts,), (None,), Constant(1.0), m.param_dtype)}

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        active_BTE = choice_BTE > 0
        weight_BTE = rms_norm(
            jnp.where(active_BTE, jax.nn.relu(score_BTE), 0.0), p["scale"], self.eps
        )  # eq. 3
        expert_BTK, full_BTK = ranked(jnp.where(active_BTE, choice_BTE, -jnp.inf), valid_BT, self.k)
        expert_BTK, gate_BTK = filled(weight_BTE, expert_BTK, full_BTK)
        return expert_BTK, gate_BTK, {}
