"""The choice on TPU: one Pallas (Mosaic) kernel that reads the logits once and makes k passes in VMEM.

XLA sorts all experts of every token for its top-k; here a pass is a maximum over the lanes, the first lane
that has it, and a mask. The floor is traffic, T E words in and T E out.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.top_k_gate.scores import SCORES
from pallas_kernels.varying import like

PLATFORM = "tpu"
MOST_EXPERTS, MOST_CHOICES = 512, 16
ROWS = 256  # tokens of a tile


def refusal(function: str, logit_TE, prefer_TE, *, k: int, score: str) -> str | None:
    """Why these operands cannot be served, or None."""
    if logit_TE.dtype != jnp.float32:
        return f"it computes in float32, not {logit_TE.dtype.name}"
    if logit_TE.shape[1] > MOST_EXPERTS or k > MOST_CHOICES:
        return f"it chooses at most {MOST_CHOICES} of {MOST_EXPERTS} experts, not {k} of {logit_TE.shape[1]}"
    return None


def choose(logit_TE, prefer_TE, *, k, score) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.choose`."""
    T, E = logit_TE.shape
    rows = min(T, ROWS)
    tile = lambda width: pl.BlockSpec((rows, width), lambda t: (t, 0))
    operands = (logit_TE,) if prefer_TE is None else (logit_TE, prefer_TE.astype(logit_TE.dtype))
    call = pl.pallas_call(
        functools.partial(_kernel, k=k, score=score),
        (
            like(logit_TE, (T, k), jnp.int32),
            like(logit_TE, (T, k), jnp.float32),
            like(logit_TE, (T, E), jnp.float32),
        ),
        grid=(pl.cdiv(T, rows),),
        in_specs=[tile(E) for _ in operands],
        out_specs=(tile(k), tile(k), tile(E)),
        compiler_params=pltpu.CompilerParams(("parallel",)),
        name="top_k_gate",
    )
    return call(*operands)


def _kernel(*refs, k: int, score: str):
    """The k best of a tile of tokens."""
    (logit, *prefer), (expert, chosen, scores) = refs[:-3], refs[-3:]
    score_te = SCORES[score](logit[...])
    scores[...] = score_te
    choice_te = score_te + prefer[0][...] if prefer else score_te
    E = choice_te.shape[1]
    lane_te = lax.broadcasted_iota(jnp.int32, choice_te.shape, 1)
    slot_tk = lax.broadcasted_iota(jnp.int32, expert.shape, 1)
    expert_tk, chosen_tk = jnp.full(expert.shape, E, jnp.int32), jnp.zeros(chosen.shape, jnp.float32)
    for i in range(k):
        best_t1 = jnp.max(choice_te, axis=1, keepdims=True)
        is_best_te = (choice_te == best_t1) & (best_t1 > -jnp.inf)
        # lanes up to 512 are exact in float32, whose minimum over lanes every generation has
        expert_t1 = jnp.min(jnp.where(is_best_te, lane_te, E).astype(jnp.float32), axis=1, keepdims=True)
        is_it_te = lane_te == expert_t1.astype(jnp.int32)
        chosen_t1 = jnp.sum(jnp.where(is_it_te, score_te, 0), axis=1, keepdims=True)
        expert_tk = jnp.where(slot_tk == i, expert_t1.astype(jnp.int32), expert_tk)
        chosen_tk = jnp.where(slot_tk == i, chosen_t1, chosen_tk)
        choice_te = jnp.where(is_it_te, -jnp.inf, choice_te)
    expert[...], chosen[...] = expert_tk, chosen_tk
