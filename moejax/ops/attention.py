"""Softmax attention with grouped key/value heads; the mask is a rule, not an array that anyone stores."""

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.seams import MaskRule

MASKED = -1e30  # a score below all others; finite, so that no difference of two is NaN
MIN_CHUNK, MAX_CHUNKS = 64, 8


def visible(rule: MaskRule):
    """bool[B, T, S]: key valid, same segment, not later than the query, within the window."""
    behind_BTS = rule.q_pos_BT[:, :, None] - rule.k_pos_BS[:, None, :]
    seen_BTS = (behind_BTS >= 0) & rule.k_valid_BS[:, None, :]
    seen_BTS &= rule.q_seg_BT[:, :, None] == rule.k_seg_BS[:, None, :]
    return seen_BTS if rule.window is None else seen_BTS & (behind_BTS < rule.window)


def mix(q_BTHA, k_BSGA, v_BSGA, rule: MaskRule):
    """Attention of H query heads over G key/value heads, H a multiple of G; softmax in at least f32.

    A query that sees no key gives zeros. Where the keys are the queries' own row, later keys are invisible to
    all of a chunk of queries and are left out: about half of the work, and scores that stay in cache.
    """
    B, T, H, A = q_BTHA.shape
    G = k_BSGA.shape[2]
    q_BTGhA = jnp.reshape(q_BTHA * A**-0.5, (B, T, G, H // G, A), out_sharding=sharding.out("BTGhA"))
    # Heads before positions, and a group's heads side by side: the products are then plain batched matmuls.
    q_BGhTA, k_BGSA, v_BGSA = (jnp.moveaxis(x, 1, -2) for x in (q_BTGhA, k_BSGA, v_BSGA))
    seen_BTS = visible(rule)
    num_chunks = min(max(T // MIN_CHUNK, 1), MAX_CHUNKS) if rule.own_row else 1
    mixed = []
    for i in range(num_chunks):
        first, end = i * T // num_chunks, (i + 1) * T // num_chunks
        last = end if rule.own_row else k_BSGA.shape[1]
        q_BGhCA, seen_BCS = q_BGhTA[:, :, :, first:end], seen_BTS[:, first:end, :last]
        mixed.append(_mix_chunk(q_BGhCA, k_BGSA[:, :, :last], v_BGSA[:, :, :last], seen_BCS))
    o_BTGhA = jnp.moveaxis(jnp.concatenate(mixed, axis=3), 3, 1)
    return jnp.reshape(o_BTGhA, (B, T, H, v_BSGA.shape[-1]), out_sharding=sharding.out("BTHA"))


def _mix_chunk(q_BGhCA, k_BGSA, v_BGSA, seen_BCS):
    """Attention of a chunk of C queries over S keys, [B, G, H/G, C, A]; the division comes last and is small."""
    B, G, h, C, A = q_BGhCA.shape
    S = k_BGSA.shape[2]
    q_BGRA = jnp.reshape(q_BGhCA, (B, G, h * C, A), out_sharding=sharding.out("BGRA"))
    score_BGRS = jnp.einsum("BGRA,BGSA->BGRS", q_BGRA, k_BGSA)
    score_BGRS = score_BGRS.astype(jnp.promote_types(score_BGRS.dtype, jnp.float32))
    score_BGhCS = jnp.reshape(score_BGRS, (B, G, h, C, S), out_sharding=sharding.out("BGhCS"))
    seen_BGhCS = seen_BCS[:, None, None]
    score_BGhCS = jnp.where(seen_BGhCS, score_BGhCS, MASKED)
    top_BGhC = jax.lax.stop_gradient(jnp.max(score_BGhCS, axis=-1, keepdims=True))
    share_BGhCS = jnp.where(seen_BGhCS, jnp.exp(score_BGhCS - top_BGhC), 0.0)
    sum_BGhC = jnp.sum(share_BGhCS, axis=-1, keepdims=True)
    share_BGRS = jnp.reshape(share_BGhCS.astype(v_BGSA.dtype), (B, G, h * C, S), out_sharding=sharding.out("BGRS"))
    o_BGRA = jnp.einsum("BGRS,BGSA->BGRA", share_BGRS, v_BGSA)
    o_BGhCA = jnp.reshape(o_BGRA, (B, G, h, C, v_BGSA.shape[-1]), out_sharding=sharding.out("BGhCA"))
    return o_BGhCA / jnp.where(sum_BGhC == 0.0, 1.0, sum_BGhC).astype(o_BGhCA.dtype)
