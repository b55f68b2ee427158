"""The gate of a mixture of experts in one pass over the logits: scores, the k best, their shares.

Letters: T tokens, E experts, K experts of a token. Expert E (one past the last) is nowhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import implementations
from pallas_kernels.top_k_gate import cpu, reference, tpu
from pallas_kernels.top_k_gate.scores import SCORES, slope
from pallas_kernels.varying import vary_alike

IMPLEMENTATIONS = {"tpu": tpu, "xla": cpu, "reference": reference}


class Gates(NamedTuple):
    """Who computes a token, and with what weight."""

    expert_TK: jax.Array  # i32, best first; E = nobody
    gate_TK: jax.Array  # 0 where nobody is
    score_TE: jax.Array  # of all experts, which is what balance losses read; 0 in absent tokens


def top_k_gate(
    logit_TE,
    k: int,
    *,
    score: str = "softmax",
    renormalise: bool = True,
    prefer_TE=None,
    valid_T=None,
    implementation: str | None = None,
) -> Gates:
    """Give every token its k experts of highest score, ties to the lower index, and their gates.

    Differentiable in the logits through gates and scores; nothing is scattered. Computes in float32, or in
    float64 for float64 logits.

    Args:
      logit_TE: of the router.
      k: experts per token, at most E.
      score: "softmax" over the experts, or "sigmoid" of each.
      renormalise: gates of a token sum to 1; otherwise they are the scores themselves.
      prefer_TE: added to the scores for the choice alone (broadcasts, no gradient); -inf = never chosen.
      valid_T: bool; absent tokens get nobody, gates and scores of 0 and no gradient, whatever they hold.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      `Gates`.

    Raises:
      ValueError: an impossible k, unknown scores or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    if logit_TE.ndim != 2 or not 1 <= k <= logit_TE.shape[1]:
        raise ValueError(f"logits are {logit_TE.shape}, k={k}; expected [T, E] and 1 <= k <= E")
    if score not in SCORES:
        raise ValueError(f"score={score!r} is not one of {', '.join(SCORES)}")
    valid_T1 = jnp.ones((len(logit_TE), 1), bool) if valid_T is None else valid_T[:, None]
    logit_TE = jnp.where(valid_T1, logit_TE, 0).astype(jnp.promote_types(logit_TE.dtype, jnp.float32))
    preferences = () if prefer_TE is None else (jnp.broadcast_to(prefer_TE, logit_TE.shape),)
    logit_TE, *preferences = vary_alike(logit_TE, *map(lax.stop_gradient, preferences))
    how = _How(k, score, implementation)
    expert_TK, chosen_TK, score_TE = _choose(logit_TE, tuple(preferences), how)
    gate_TK = jnp.where(valid_T1, chosen_TK, 0)
    return Gates(
        jnp.where(valid_T1, expert_TK, logit_TE.shape[1]),
        _to_sum_one(gate_TK) if renormalise else gate_TK,
        jnp.where(valid_T1, score_TE, 0),
    )


def _to_sum_one(score_TK):
    """Scores over their sum, in units of the largest, whose square does not underflow; zeros stay zeros."""
    top_T1 = lax.stop_gradient(jnp.max(score_TK, axis=1, keepdims=True))
    score_TK = score_TK / jnp.where(top_T1 > 0, top_T1, 1)
    sum_T1 = jnp.sum(score_TK, axis=1, keepdims=True)
    return score_TK / jnp.where(sum_T1 == 0, 1, sum_T1)


class _How(NamedTuple):
    """What is known when the program is traced."""

    k: int
    score: str
    implementation: str | None  # None: the best of the platform that the program is compiled for


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _choose(logit_TE, preferences, how: _How):
    """(experts, their scores, all scores)."""
    operands = (logit_TE, *(preferences or (None,)))
    static = {"k": how.k, "score": how.score}
    if 0 in logit_TE.shape:
        return cpu.choose(*operands, **static)
    return implementations.run(IMPLEMENTATIONS, "choose", how.implementation, operands, **static)


def _choose_forward(logit_TE, preferences, how):
    expert_TK, chosen_TK, score_TE = _choose(logit_TE, preferences, how)
    return (expert_TK, chosen_TK, score_TE), (expert_TK, score_TE)


def _choose_backward(how, saved, cotangents):
    expert_TK, score_TE = saved
    _, d_chosen_TK, d_score_TE = cotangents
    expert_1E = jnp.arange(score_TE.shape[1], dtype=jnp.int32)[None]
    for i in range(how.k):
        d_score_TE += jnp.where(expert_TK[:, i, None] == expert_1E, d_chosen_TK[:, i, None], 0)
    return slope(how.score, score_TE, d_score_TE), None


_choose.defvjp(_choose_forward, _choose_backward)
