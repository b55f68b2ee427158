"""Softmax attention with grouped key/value heads; the mask is a rule, not an array that anyone stores."""

import functools

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
    num_chunks = min(max(T // MIN_CHUNK, 1), MAX_CHUNKS) if rule.own_row else 1
    bounds = tuple((i * T // num_chunks, (i + 1) * T // num_chunks) for i in range(num_chunks))
    chunks = tuple((first, end, end if rule.own_row else k_BGSA.shape[2]) for first, end in bounds)
    o_BGhTA = _mix(q_BGhTA, k_BGSA, v_BGSA, visible(rule), chunks)
    o_BTGhA = jnp.moveaxis(o_BGhTA, 3, 1)
    return jnp.reshape(o_BTGhA, (B, T, H, v_BSGA.shape[-1]), out_sharding=sharding.out("BTHA"))


# Its own derivative keeps one array of the size of the scores, and joins the chunks' rows without padding.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mix(q_BGhTA, k_BGSA, v_BGSA, seen_BTS, chunks):
    """Attention by chunks (first query, end, keys) of queries; the queries are scaled already."""
    return _mix_forward(q_BGhTA, k_BGSA, v_BGSA, seen_BTS, chunks)[0]


def _mix_forward(q_BGhTA, k_BGSA, v_BGSA, seen_BTS, chunks):
    mixed, shares = [], []
    for first, end, keys in chunks:
        q_BGhCA, seen_BCS = q_BGhTA[:, :, :, first:end], seen_BTS[:, first:end, :keys]
        share_BGRS, unit_BGR1 = _shares(_rows(q_BGhCA), k_BGSA[:, :, :keys], seen_BCS)
        o_BGRA = jnp.einsum("BGRS,BGSA->BGRA", share_BGRS, v_BGSA[:, :, :keys]) * unit_BGR1
        mixed.append(_heads(o_BGRA, q_BGhCA.shape[2]))
        shares.append((share_BGRS, unit_BGR1))
    o_BGhTA = jnp.concatenate(mixed, axis=3)
    return o_BGhTA, (q_BGhTA, k_BGSA, v_BGSA, o_BGhTA, shares)


def _mix_backward(chunks, saved, d_o_BGhTA):
    q_BGhTA, k_BGSA, v_BGSA, o_BGhTA, shares = saved
    precise = jnp.promote_types(q_BGhTA.dtype, jnp.float32)
    d_q, d_k_BGSA, d_v_BGSA = [], 0.0, 0.0
    for (first, end, keys), (share_BGRS, unit_BGR1) in zip(chunks, shares, strict=True):
        q_BGRA, o_BGRA, d_o_BGRA = (_rows(x[:, :, :, first:end]) for x in (q_BGhTA, o_BGhTA, d_o_BGhTA))
        d_o_BGRA = d_o_BGRA * unit_BGR1
        mean_BGR1 = jnp.sum(d_o_BGRA * o_BGRA, axis=-1, keepdims=True, dtype=precise)
        d_share_BGRS = jnp.einsum("BGRA,BGSA->BGRS", d_o_BGRA, v_BGSA[:, :, :keys])
        d_score_BGRS = (share_BGRS * (d_share_BGRS.astype(precise) - mean_BGR1)).astype(q_BGRA.dtype)
        d_q.append(_heads(jnp.einsum("BGRS,BGSA->BGRA", d_score_BGRS, k_BGSA[:, :, :keys]), q_BGhTA.shape[2]))
        pad = ((0, 0), (0, 0), (0, k_BGSA.shape[2] - keys), (0, 0))
        d_k_BGSA += jnp.pad(jnp.einsum("BGRS,BGRA->BGSA", d_score_BGRS, q_BGRA), pad)
        d_v_BGSA += jnp.pad(jnp.einsum("BGRS,BGRA->BGSA", share_BGRS, d_o_BGRA), pad)
    return jnp.concatenate(d_q, axis=3), d_k_BGSA, d_v_BGSA, None


_mix.defvjp(_mix_forward, _mix_backward)


def _shares(q_BGRA, k_BGSA, seen_BCS):
    """(exp(score - largest), zero where unseen; 1 / their sum over keys); rows R are heads times queries."""
    score_BGRS = jnp.einsum("BGRA,BGSA->BGRS", q_BGRA, k_BGSA)
    score_BGRS = score_BGRS.astype(jnp.promote_types(score_BGRS.dtype, jnp.float32))
    score_BGhCS = _heads(score_BGRS, q_BGRA.shape[2] // seen_BCS.shape[1])
    seen_BGhCS = seen_BCS[:, None, None]
    score_BGhCS = jnp.where(seen_BGhCS, score_BGhCS, MASKED)
    top_BGhC1 = jnp.max(score_BGhCS, axis=-1, keepdims=True)
    share_BGhCS = jnp.where(seen_BGhCS, jnp.exp(score_BGhCS - top_BGhC1), 0.0)
    sum_BGhC1 = jnp.sum(share_BGhCS, axis=-1, keepdims=True)
    unit_BGhC1 = 1.0 / jnp.where(sum_BGhC1 == 0.0, 1.0, sum_BGhC1)
    return _rows(share_BGhCS.astype(k_BGSA.dtype)), _rows(unit_BGhC1.astype(k_BGSA.dtype))


def _rows(x_BGhCA):
    """A group's heads side by side, [B, G, R, A]: the products are then plain batched matmuls."""
    B, G, h, C, A = x_BGhCA.shape
    return jnp.reshape(x_BGhCA, (B, G, h * C, A), out_sharding=sharding.out("BGRA"))


def _heads(x_BGRA, num_heads: int):
    """Undoes `_rows`."""
    B, G, R, A = x_BGRA.shape
    return jnp.reshape(x_BGRA, (B, G, num_heads, R // num_heads, A), out_sharding=sharding.out("BGhCA"))
