"""Predicted expert utility: how strongly confident tokens ask for an expert.

PreMoe: Lightening MoEs on Constrained Memory by Expert Pruning and Retrieval (2025, arXiv 2505.17639,
version 3): of the Ka largest logits s of a token, p = their softmax. An expert earns f(s) from a token where
p >= r, and 0 otherwise; its utility is the mean over all tokens. r is the layer's mean of max p.
f(s) = max(s, sigmoid(s)) is positive, so that an expert that was wanted with a negative logit stands above
one that never was.
The score of version 1 (TCESS) is transform="raw": with threshold=0 it is the mean logit of the experts
that were chosen, and with candidates=1 that of the first choice, as in the authors' code.

Differs from the paper: the default number of candidates, which the paper does not name, is that of the
experts a token is routed to; `centred` is an addition, because softmax routers do not mind a shift of a
token's logits and f does.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.surgery.score.base import mean_over_tokens, per_expert
from moejax.surgery.seams import Score

TRANSFORMS = {
    "max_sigmoid": lambda s: jnp.maximum(s, jax.nn.sigmoid(s)),
    "raw": lambda s: s,
}


@dataclasses.dataclass(frozen=True)
class ExpertUtility(Score):
    candidates: int | None = None  # Ka; None: as many as a token's slots
    threshold: float | None = None  # r; None: the mean of the largest share; 0 lets every candidate pass
    transform: str = "max_sigmoid"  # max_sigmoid | raw
    centred: bool = False  # subtract the token's log-sum-exp from its logits first

    def __post_init__(self):
        known = ", ".join(TRANSFORMS)
        require(self.transform in TRANSFORMS, f"score.transform={self.transform!r} is not one of {known}")
        least = self.candidates is None or self.candidates >= 1
        require(least, f"score.candidates={self.candidates} must be at least 1, or None")

    def score(self, params, m, batches, sides=None):
        given = None
        if self.threshold is None:
            given = mean_over_tokens(LargestShare(self.candidates), params, m, batches, sides)
        return mean_over_tokens(Utility(self), params, m, batches, sides, given)


@dataclasses.dataclass(frozen=True)
class LargestShare:
    """max p of each token; its mean is the threshold."""

    candidates: int | None

    def __call__(self, seen, _):
        _, share_NK = local_shares(seen.logit_NE, self.candidates or seen.expert_NK.shape[1])
        return share_NK[:, 0]


@dataclasses.dataclass(frozen=True)
class Utility:
    """What each expert earns from each token."""

    of: ExpertUtility

    def __call__(self, seen, threshold):
        threshold = self.of.threshold if threshold is None else threshold
        logit_NE = seen.logit_NE
        E = logit_NE.shape[1]
        expert_NK, share_NK = local_shares(logit_NE, self.of.candidates or seen.expert_NK.shape[1])
        if self.of.centred:
            logit_NE = jax.nn.log_softmax(logit_NE)
        earned_NK = TRANSFORMS[self.of.transform](jnp.take_along_axis(logit_NE, expert_NK, axis=1))
        return per_expert(jnp.where(share_NK >= threshold, earned_NK, 0), expert_NK, E)


def local_shares(logit_NE, candidates: int):
    """(experts of the largest logits, largest first; softmax over these alone)."""
    top_NK, expert_NK = jax.lax.top_k(logit_NE, candidates)
    return expert_NK, jax.nn.softmax(top_NK)
