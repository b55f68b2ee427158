"""Softmax attention with grouped key/value heads; the mask is a rule, not an array that anyone stores."""

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.seams import MaskRule


def visible(rule: MaskRule):
    """bool[B, T, S]: key valid, same segment, not later than the query, within the window."""
    behind_BTS = rule.q_pos_BT[:, :, None] - rule.k_pos_BS[:, None, :]
    seen_BTS = (behind_BTS >= 0) & rule.k_valid_BS[:, None, :]
    seen_BTS &= rule.q_seg_BT[:, :, None] == rule.k_seg_BS[:, None, :]
    return seen_BTS if rule.window is None else seen_BTS & (behind_BTS < rule.window)


def mix(q_BTHA, k_BSGA, v_BSGA, rule: MaskRule):
    """Attention of H query heads over G key/value heads, H a multiple of G; softmax in at least f32.

    A query that sees no key gives zeros.
    """
    B, T, H, A = q_BTHA.shape
    G = k_BSGA.shape[2]
    q_BTGhA = jnp.reshape(q_BTHA, (B, T, G, H // G, A), out_sharding=sharding.out("BTGhA"))
    score_BGhTS = jnp.einsum("BTGhA,BSGA->BGhTS", q_BTGhA * A**-0.5, k_BSGA, out_sharding=sharding.out("BGhTS"))
    score_BGhTS = score_BGhTS.astype(jnp.promote_types(score_BGhTS.dtype, jnp.float32))
    seen_BGhTS = visible(rule)[:, None, None]
    score_BGhTS = jnp.where(seen_BGhTS, score_BGhTS, -jnp.inf)
    top_BGhTS = jax.lax.stop_gradient(jnp.max(score_BGhTS, axis=-1, keepdims=True))
    share_BGhTS = jnp.exp(score_BGhTS - jnp.where(jnp.isfinite(top_BGhTS), top_BGhTS, 0.0))
    sum_BGhTS = jnp.sum(share_BGhTS, axis=-1, keepdims=True)
    share_BGhTS = (share_BGhTS / jnp.where(sum_BGhTS == 0.0, 1.0, sum_BGhTS)).astype(v_BSGA.dtype)
    o_BTGhA = jnp.einsum("BGhTS,BSGA->BTGhA", share_BGhTS, v_BSGA, out_sharding=sharding.out("BTGhA"))
    return jnp.reshape(o_BTGhA, (B, T, H, v_BSGA.shape[-1]), out_sharding=sharding.out("BTHA"))
