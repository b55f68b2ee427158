"""Softmax attention with grouped key/value heads; the mask is a rule, not an array that anyone stores."""

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.errors import UsageError
from moejax.ops.cache import slot_of
from moejax.seams import MaskRule
from pallas_kernels import segment_attention, segment_attention_with_lse, slot_attention

MASKED = -1e30  # a score below all others; finite, so that no difference of two is NaN


def over_row(batch, window: int | None = None) -> MaskRule:
    """The rule by which the queries of `batch` see the keys of their own row."""
    here = (batch.pos_BT, batch.seg_BT)
    return MaskRule(*here, *here, batch.valid_BT, window, own_row=True)


def over_slot(batch, length: int, window: int | None = None) -> MaskRule:
    """The rule by which they see all that a slot of a cache holds, a key for each of `length` positions."""
    if batch.flat is not None:
        here = (batch.pos_BT, slot_of(batch))
        return MaskRule(*here, *here, batch.valid_BT, window, flat=batch.flat)
    B, S = batch.pos_BT.shape[0], length
    pos_BS = jnp.broadcast_to(jnp.arange(S, dtype=batch.pos_BT.dtype), (B, S))
    seg_BS = jnp.broadcast_to(batch.seg_BT[:, :1], (B, S))
    return MaskRule(batch.pos_BT, batch.seg_BT, pos_BS, seg_BS, jnp.ones((B, S), bool), window)


def scaled(q_BTHA, factor: float):
    """Queries times a factor that is not rounded to half precision: it would bend all scores alike."""
    precise = jnp.promote_types(q_BTHA.dtype, jnp.float32)
    return (q_BTHA.astype(precise) * factor).astype(q_BTHA.dtype)


def visible(rule: MaskRule):
    """bool[B, T, S]: key valid, same segment, not later than the query, within the window."""
    behind_BTS = rule.q_pos_BT[:, :, None] - rule.k_pos_BS[:, None, :]
    seen_BTS = (behind_BTS >= 0) & rule.k_valid_BS[:, None, :]
    seen_BTS &= rule.q_seg_BT[:, :, None] == rule.k_seg_BS[:, None, :]
    return seen_BTS if rule.window is None else seen_BTS & (behind_BTS < rule.window)


def mix(q_BTHA, k_BSGA, v_BSGA, rule: MaskRule, sink_H=None):
    """Attention of H query heads over G key/value heads, H a multiple of G; softmax in at least f32.

    A query that sees no key gives zeros. Where the keys are the queries' own row the platform's kernel works,
    and absent tokens give zeros as queries too.

    Args:
      sink_H: per head, the score of one more key, which every query sees and whose value is zero.
    """
    if rule.flat is not None:
        return _mix_pages(q_BTHA, k_BSGA, v_BSGA, rule, sink_H)
    if not rule.own_row:
        return _mix_slot(q_BTHA, k_BSGA, v_BSGA, visible(rule), sink_H)
    segment_BT = jnp.where(rule.k_valid_BS, 1 + rule.k_seg_BS, 0)
    operands = (q_BTHA, k_BSGA, v_BSGA, segment_BT)
    if sink_H is None:
        return segment_attention(*operands, window=rule.window)
    o_BTHA, lse_BHT = segment_attention_with_lse(*operands, window=rule.window)
    # exp(lse) / (exp(lse) + exp(sink)): what the sink leaves of every share
    left_BHT = jax.nn.sigmoid(lse_BHT - sink_H.astype(lse_BHT.dtype)[None, :, None])
    left_BTH1 = jnp.swapaxes(left_BHT, 1, 2)[..., None]
    return (o_BTHA * left_BTH1).astype(o_BTHA.dtype)


def _mix_pages(q_BTHA, k_PGSA, v_PGSA, rule: MaskRule, sink_H):
    """Attention of flat rows over the pages of their own requests."""
    if sink_H is not None:
        raise UsageError("attention with sinks does not read a cache of pages; use moejax.generate")
    rows = (rule.q_seg_BT[0], rule.q_pos_BT[0], rule.flat.page_QP)
    return slot_attention(q_BTHA[0], k_PGSA, v_PGSA, *rows, window=rule.window)[None]


def _mix_slot(q_BTHA, k_BSGA, v_BSGA, seen_BTS, sink_H):
    """Attention over whatever a slot of a cache holds."""
    B, T, H, A = q_BTHA.shape
    G = k_BSGA.shape[2]
    split = "BTGhA" if G > 1 else "BTgHA"  # a lone key head is whole on every device
    q_BTGhA = jnp.reshape(scaled(q_BTHA, A**-0.5), (B, T, G, H // G, A), out_sharding=sharding.out(split))
    # Heads before positions: the products are then plain batched matmuls.
    q_BGhTA, k_BGSA, v_BGSA = (jnp.moveaxis(x, 1, -2) for x in (q_BTGhA, k_BSGA, v_BSGA))
    score_BGhTS = jnp.einsum("BGhTA,BGSA->BGhTS", q_BGhTA, k_BGSA)
    score_BGhTS = score_BGhTS.astype(jnp.promote_types(score_BGhTS.dtype, jnp.float32))
    seen_B11TS = seen_BTS[:, None, None]
    score_BGhTS = jnp.where(seen_B11TS, score_BGhTS, MASKED)
    top_BGhT1 = jnp.max(score_BGhTS, axis=-1, keepdims=True)
    if sink_H is not None:
        sink_1Gh11 = jnp.reshape(sink_H, (1, G, H // G, 1, 1)).astype(score_BGhTS.dtype)
        top_BGhT1 = jnp.maximum(top_BGhT1, sink_1Gh11)
    share_BGhTS = jnp.where(seen_B11TS, jnp.exp(score_BGhTS - top_BGhT1), 0.0)
    sum_BGhT1 = jnp.sum(share_BGhTS, axis=-1, keepdims=True)
    if sink_H is not None:
        sum_BGhT1 += jnp.exp(sink_1Gh11 - top_BGhT1)
    share_BGhTS /= jnp.where(sum_BGhT1 == 0.0, 1.0, sum_BGhT1)
    o_BGhTA = jnp.einsum("BGhTS,BGSA->BGhTA", share_BGhTS.astype(v_BGSA.dtype), v_BGSA)
    o_BTGhA = jnp.moveaxis(o_BGhTA, 3, 1)
    return jnp.reshape(o_BTGhA, (B, T, H, v_BSGA.shape[-1]), out_sharding=sharding.out("BTHA"))
