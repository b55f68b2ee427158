"""Router that reads the residual stream before attention.

SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment (Song et al.
2025, arXiv 2507.20984): logits = h W on the raw residual stream h at the block's start, before any norm; the
experts read the normed output of attention. The choice is final before attention runs, so experts can be
fetched meanwhile. Scores are sigmoids, divided by their sum over the chosen (`TopK(renormalise=True)`);
"softmax" is the released models' other setting.

Differs from the paper: the k highest scores are chosen, not the k highest logits, which differs only for
logits so large that their sigmoids are equal.
"""

import dataclasses

from moejax.routers.score.base import ACTIVATIONS, SIGNED, SPARSE, check_activation, logits
from moejax.seams import Scorer
from moejax.specs import Normal, Spec


@dataclasses.dataclass(frozen=True)
class PreAttention(Scorer):
    activation: str = "sigmoid"  # softmax | sigmoid | sqrt_softplus | relu | identity

    reads = frozenset({"h_BTD"})

    def __post_init__(self):
        check_activation(self.activation)

    @property
    def sparse(self) -> bool:
        return self.activation in SPARSE

    @property
    def signed(self) -> bool:
        return self.activation in SIGNED

    def specs(self, m, num_experts: int):
        return {"w": Spec((m.width, num_experts), ("embed", None), Normal(0.02), m.param_dtype)}

    def score(self, p, i):
        logit_BTE = logits(i.h_BTD, p["w"])
        return logit_BTE, ACTIVATIONS[self.activation](logit_BTE), i.memory
