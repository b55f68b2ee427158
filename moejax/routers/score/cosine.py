"""Cosine router with a learned temperature.

On the Representation Collapse of Sparse Mixture of Experts (X-MoE; Chi et al. 2022, arXiv 2204.09179):
tokens are projected to a few dims, and an expert's score is the cosine of the angle to its embedding,
logits = cos(x P, s_e) / temperature, scores = softmax(logits). Scaling x changes nothing.

Differs from the paper: what is learned is t = log(1 / temperature), and the factor exp(t) stays at or below
100, as in Tutel (arXiv 2206.03382; there width 256, temperature 0.5 and a bias after the projection).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.routers.score.base import score_dtype, unit
from moejax.seams import Scorer
from moejax.specs import Constant, Normal, Spec

MAX_FACTOR = 100.0


@dataclasses.dataclass(frozen=True)
class Cosine(Scorer):
    width: int  # W, of the projection; X-MoE takes half the number of experts
    temperature: float = 0.07  # at the start
    bias: bool = False  # after the projection; with it the length of x matters

    reads = frozenset({"x_BTD"})

    def __post_init__(self):
        require(self.width >= 1, f"scorer.width={self.width} must be at least 1")
        require(
            self.temperature >= 1 / MAX_FACTOR,
            f"scorer.temperature={self.temperature} must be at least {1 / MAX_FACTOR}, "
            "below which the factor is cut off",
        )

    def specs(self, m, num_experts: int):
        W = self.width
        tree = {
            "project": Spec((m.width, W), ("embed", None), Normal(m.width**-0.5), m.param_dtype),
            "expert": Spec((W, num_experts), (None, None), Normal(0.01), m.param_dtype),
            "log_factor": Spec((), (), Constant(-math.log(self.temperature)), m.param_dtype),
        }
        if self.bias:
            tree["b"] = Spec((W,), (None,), Constant(0.0), m.param_dtype)
        return tree

    def score(self, p, i):
        dtype = score_dtype(i.x_BTD.dtype)
        low_BTW = weights.einsum("BTD,DW->BTW", i.x_BTD.astype(dtype), p["project"])
        if self.bias:
            low_BTW = low_BTW + p["b"].astype(dtype)[None, None]
        cos_BTE = weights.einsum("BTW,WE->BTE", unit(low_BTW), unit(p["expert"].astype(dtype), axis=0))
        factor = jnp.exp(jnp.minimum(p["log_factor"].astype(dtype), math.log(MAX_FACTOR)))
        logit_BTE = cos_BTE * factor
        return logit_BTE, jax.nn.softmax(logit_BTE), i.memory
