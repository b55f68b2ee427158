"""Linear router with noise of a learned size.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), eq. 4, also the GShard gate of
FSMoE (arXiv 2501.10714): H = x W + N(0, 1) softplus(x W_noise), scores = softmax(H). Without a key, as in
evaluation and serving, H = x W.

Differs from the paper: the softmax comes before the choice; renormalised gates are the same. W begins as any
other router does, not at zero.
"""

import dataclasses

import jax

from moejax.routers.score.base import logits, noise
from moejax.seams import Scorer
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class Noisy(Scorer):
    reads = frozenset({"x_BTD"})

    def specs(self, m, num_experts: int):
        shape, dims = (m.width, num_experts), ("embed", None)
        return {
            "w": Spec(shape, dims, Normal(m.width**-0.5), m.param_dtype),
            "noise": Spec(shape, dims, Constant(0.0), m.param_dtype),
        }

    def score(self, p, i):
        logit_BTE = logits(i.x_BTD, p["w"])
        if i.key is not None:
            size_BTE = jax.nn.softplus(logits(i.x_BTD, p["noise"]))
            logit_BTE = logit_BTE + size_BTE * noise(i.key, logit_BTE)  # eq. 4
        return logit_BTE, jax.nn.softmax(logit_BTE), i.memory
