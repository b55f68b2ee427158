"""The choice out of plain XLA operations, whose top-k is as fast on CPU as k passes over the experts."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.top_k_gate.scores import SCORES

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def choose(logit_TE, prefer_TE, *, k, score) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.choose`."""
    score_TE = SCORES[score](logit_TE)
    best_TK, expert_TK = lax.top_k(score_TE if prefer_TE is None else score_TE + prefer_TE, k)
    full_TK = best_TK > -jnp.inf
    chosen_TK = jnp.take_along_axis(score_TE, expert_TK, axis=1)
    return jnp.where(full_TK, expert_TK, logit_TE.shape[1]), jnp.where(full_TK, chosen_TK, 0), score_TE
