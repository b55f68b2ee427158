"""Linear router.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), eq. 3 without noise:
logits = x W, scores = softmax(logits); sigmoid scores as in DeepSeek-V3 (arXiv 2412.19437), eq. 15.

Differs from the paper: no noise.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.specs import Normal, Spec

ACTIVATIONS = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class Linear:
    activation: str = "softmax"  # softmax | sigmoid

    reads = frozenset({"x_BTD"})

    def __post_init__(self):
        known = ", ".join(ACTIVATIONS)
        is_known = self.activation in ACTIVATIONS
        require(is_known, f"scorer.activation={self.activation!r} is not one of {known}")

    def specs(self, m, num_experts: int):
        return {"w": Spec((m.width, num_experts), ("embed", None), Normal(m.width**-0.5), m.param_dtype)}

    def score(self, p, i):
        x_BTD = i.x_BTD.astype(jnp.promote_types(i.x_BTD.dtype, jnp.float32))
        logit_BTE = weights.einsum("BTD,DE->BTE", x_BTD, p["w"])
        return logit_BTE, ACTIVATIONS[self.activation](logit_BTE), i.memory
