"""What routers do on average: the usual scores that other ways of ranking experts are compared with.

As compared in PreMoe (2025, arXiv 2505.17639): how often an expert is chosen, its mean gate, the mean of all
its logits, chosen or not.

Differs from the paper: nothing.
"""

import dataclasses

import jax.numpy as jnp

from moejax.surgery.score.base import mean_over_tokens, per_expert
from moejax.surgery.seams import Score


@dataclasses.dataclass(frozen=True)
class Frequency(Score):
    """Share of the tokens that choose an expert."""

    def score(self, params, m, batches, sides=None):
        return mean_over_tokens(chosen, params, m, batches, sides)


@dataclasses.dataclass(frozen=True)
class MeanGate(Score):
    """Mean gate of an expert; 0 where it is not chosen."""

    def score(self, params, m, batches, sides=None):
        return mean_over_tokens(gates, params, m, batches, sides)


@dataclasses.dataclass(frozen=True)
class AllLogits(Score):
    """Mean logit of an expert over all tokens."""

    def score(self, params, m, batches, sides=None):
        return mean_over_tokens(logits, params, m, batches, sides)


def chosen(seen, _):
    return per_expert(jnp.ones_like(seen.gate_NK), seen.expert_NK, seen.logit_NE.shape[1])


def gates(seen, _):
    return per_expert(seen.gate_NK, seen.expert_NK, seen.logit_NE.shape[1])


def logits(seen, _):
    return seen.logit_NE
