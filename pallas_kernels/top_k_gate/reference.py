"""The meaning of the choice: k times the best of the experts that are left."""

import jax
import jax.numpy as jnp

from pallas_kernels.top_k_gate.scores import SCORES

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def choose(logit_TE, prefer_TE, *, k, score) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k experts of highest score + preference, best first, ties to the lower index.

    Returns:
      (expert_TK i32, their scores, all scores); the expert is E and its score 0 where none is left, which
      is where choices are -inf (or NaN).
    """
    score_TE = SCORES[score](logit_TE)
    choice_TE = score_TE if prefer_TE is None else score_TE + prefer_TE
    expert_E = jnp.arange(logit_TE.shape[1], dtype=jnp.int32)
    chosen = []
    for _ in range(k):
        best_T1 = jnp.max(choice_TE, axis=1, keepdims=True)
        is_best_TE = (choice_TE == best_T1) & (best_T1 > -jnp.inf)
        expert_T = jnp.min(jnp.where(is_best_TE, expert_E[None], len(expert_E)), axis=1)
        is_it_TE = expert_E[None] == expert_T[:, None]
        chosen.append((expert_T, jnp.sum(jnp.where(is_it_TE, score_TE, 0), axis=1)))
        choice_TE = jnp.where(is_it_TE, -jnp.inf, choice_TE)
    expert_KT, score_KT = map(jnp.stack, zip(*chosen, strict=True))
    return expert_KT.T, score_KT.T, score_TE
