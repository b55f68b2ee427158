"""Linear router.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), eq. 3 without noise:
logits = x W, scores = softmax(logits). Sigmoid scores as in DeepSeek-V3 (arXiv 2412.19437), eq. 15;
sqrt(softplus) as in DeepSeek-V4; the bias is that of gpt-oss (arXiv 2508.10925); noise of a fixed size as in
Tutel (arXiv 2206.03382). Noise of a learned size is in `noisy.py`.

Differs from the papers: nothing.
"""

import dataclasses

from moejax.config import require
from moejax.routers.score.base import ACTIVATIONS, SIGNED, SPARSE, check_activation, logits, noise
from moejax.seams import Scorer
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class Linear(Scorer):
    activation: str = "softmax"  # softmax | sigmoid | sqrt_softplus | relu | identity
    bias: bool = False  # add a learned constant to the logits
    noise: float = 0.0  # standard deviation of what training adds to the logits, times E

    reads = frozenset({"x_BTD"})

    def __post_init__(self):
        check_activation(self.activation)
        require(self.noise >= 0, f"scorer.noise={self.noise} must not be negative; 0 turns it off")

    @property
    def sparse(self) -> bool:
        return self.activation in SPARSE

    @property
    def signed(self) -> bool:
        return self.activation in SIGNED

    def specs(self, m, num_experts: int):
        tree = {"w": Spec((m.width, num_experts), ("embed", None), Normal(m.width**-0.5), m.param_dtype)}
        if self.bias:
            tree["b"] = Spec((num_experts,), (None,), Constant(0.0), m.param_dtype)
        return tree

    def score(self, p, i):
        logit_BTE = logits(i.x_BTD, p["w"])
        if self.bias:
            logit_BTE = logit_BTE + p["b"].astype(logit_BTE.dtype)[None, None]
        if self.noise and i.key is not None:
            logit_BTE = logit_BTE + self.noise / logit_BTE.shape[-1] * noise(i.key, logit_BTE)
        return logit_BTE, ACTIVATIONS[self.activation](logit_BTE), i.memory
