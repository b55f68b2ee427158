"""Routers in which a token follows its kin: by similarity, or by the attention map of the same block.

Improving Routing in Sparse Mixture of Experts with Graph of Tokens (Nguyen et al. 2025, arXiv 2505.00792): a
token first points at a related token j with probability M_ij and then draws its expert from j's router,
    R = softmax(x W),  scores = M R.
Similarity-aware: M = softmax_j(x_i W_s x_j / (tau sqrt(D))). Attention-aware: M is the mean over heads of the
block's own attention probabilities. Both see what the block's attention sees: earlier tokens of the document,
within its window. M is never built: M R is an attention call with the rows of R as values.

Differs from the paper: written from its abstract, so equations and defaults are a reading of it. W_s begins
as the identity; what is stored is its difference from it. Heads have equal weights. `share` = lambda mixes
M R with the token's own row, (1 - lambda) R + lambda M R.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require
from moejax.ops.attention import mix
from moejax.ops.cache import write
from moejax.routers.score.base import logits, score_dtype
from moejax.seams import Mixing, Scorer
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class AttentionAware(Scorer):
    share: float = 1.0  # lambda, of M R in the scores
    detach: bool = False  # no gradient through M

    reads = frozenset({"x_BTD", "mixing", "batch", "memory"})

    def __post_init__(self):
        require(0 <= self.share <= 1, f"scorer.share={self.share} must lie between 0 and 1")

    def specs(self, m, num_experts: int):
        return {"w": Spec((m.width, num_experts), ("embed", None), Normal(m.width**-0.5), m.param_dtype)}

    def cache(self, m, num_experts: int, num_slots: int, length: int):
        return {"row": _row_cache(m, num_experts, num_slots, length)}

    def score(self, p, i):
        logit_BTE = logits(i.x_BTD, p["w"])
        row_BTE = jax.nn.softmax(logit_BTE)
        seen, memory = _remember({"row": row_BTE}, i)
        return logit_BTE, _smooth(self, row_BTE, i.mixing, seen["row"]), memory


@dataclasses.dataclass(frozen=True)
class SimilarityAware(Scorer):
    temperature: float = 1.0  # tau
    share: float = 1.0  # lambda, of M R in the scores
    detach: bool = False  # no gradient through M

    reads = frozenset({"x_BTD", "mixing", "batch", "memory"})

    def __post_init__(self):
        require(self.temperature > 0, f"scorer.temperature={self.temperature} must be positive")
        require(0 <= self.share <= 1, f"scorer.share={self.share} must lie between 0 and 1")

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that would split the one head of the similarity."""
        require(
            mesh.tensor == 1,
            f"mesh.tensor={mesh.tensor} splits attention heads, but the similarity of tokens has one head; "
            "set mesh.tensor=1, or use AttentionAware()",
        )

    def specs(self, m, num_experts: int):
        D = m.width
        return {
            "w": Spec((D, num_experts), ("embed", None), Normal(D**-0.5), m.param_dtype),
            "similarity": Spec((D, D), ("embed", None), Constant(0.0), m.param_dtype),  # W_s - I
        }

    def cache(self, m, num_experts: int, num_slots: int, length: int):
        key = Spec((num_slots, length, m.width), ("batch", None, None), Constant(0.0), m.dtype)
        return {"row": _row_cache(m, num_experts, num_slots, length), "key": key}

    def score(self, p, i):
        logit_BTE = logits(i.x_BTD, p["w"])
        row_BTE = jax.nn.softmax(logit_BTE)
        seen, memory = _remember({"row": row_BTE, "key": i.x_BTD}, i)
        q_BTX = i.x_BTD + weights.einsum("BTD,DX->BTX", i.x_BTD, p["similarity"])  # X: D again
        q_BTHA, k_BSGA = _for_heads(q_BTX / self.temperature, 1), _for_heads(seen["key"], 1)
        return logit_BTE, _smooth(self, row_BTE, Mixing(q_BTHA, k_BSGA, i.mixing.rule), seen["row"]), memory


def _row_cache(m, num_experts: int, num_slots: int, length: int):
    shape, dims = (num_slots, length, num_experts), ("batch", None, None)
    return Spec(shape, dims, Constant(0.0), str(score_dtype(m.dtype)))


def _remember(new, i):
    """(what the keys of `i.mixing` have, memory): this batch, and in decoding also what came before it."""
    if "ffn" not in i.memory.cache:
        return new, i.memory
    old = i.memory.cache["ffn"]
    seen = {name: write(old[name], new[name], i.batch, "BSE") for name in new}
    return seen, i.memory.replace(cache=i.memory.cache | {"ffn": seen})


def _for_heads(x_BSA, num_heads: int):
    """The same for every head, laid out as heads are."""
    B, S, A = x_BSA.shape
    return jnp.broadcast_to(x_BSA[:, :, None], (B, S, num_heads, A), out_sharding=sharding.out("BSGA"))


def _smooth(scorer, own_BTE, mixing, row_BSE):
    """(1 - lambda) R + lambda M R, with M the mean of the attention maps of all heads."""
    q_BTHA, k_BSGA = (x.astype(row_BSE.dtype) for x in (mixing.q_BTHA, mixing.k_BSGA))
    if scorer.detach:
        q_BTHA, k_BSGA = jax.lax.stop_gradient((q_BTHA, k_BSGA))
    row_BSGE = _for_heads(row_BSE, k_BSGA.shape[2])
    mixed_BTE = jnp.mean(mix(q_BTHA, k_BSGA, row_BSGE, mixing.rule), axis=2)
    return (1 - scorer.share) * own_BTE + scorer.share * mixed_BTE
