"""The meaning of segment attention: a dense masked softmax; memory quadratic in T, so an oracle.

Every implementation in the table of `api.py` is a module with PLATFORM, `refusal(function, *operands,
**static)` and these two functions; what they are given has been checked, and has one floating type:

    forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window, scale) -> (o_BTHC, lse_BHT, kept)
    backward(q_BTHA, k_BTGA, v_BTGC, segment_BT, lse_BHT, delta_BHT, d_o_BTHC, kept, *, window, scale)
        -> (d_q_BTHA, d_k_BTGA, d_v_BTGC)

- segment_BT i32: 1 and more are segments; 0 and less is padding. The buffers of padding may hold NaN, in q,
  k, v, d_o and delta; nothing of it may leak into a result.
- window int >= 1, or None for all; scale float, which multiplies the products of q and k.
- o has the type of q, and is zero where the query is padding. lse, the logarithm of the sum of the
  exponentials of the visible scores, and delta are float32 (float64 for float64 operands); lse is -inf
  where the query is padding. With p = exp(score - lse) where visible, else 0:
      d_score = p * (d_o @ v.T - delta),  d_v = p.T @ d_o,  d_q = scale * d_score @ k,  d_k likewise.
- kept: whatever else the implementation's own backward wants; None for all that recompute. It must be None
  in programs for accelerators, where the table may offer two implementations for one program.

Letters: B rows, T positions of queries, S of keys, H query heads, G key/value heads, A head width of queries
and keys, C head width of values and results. Query heads g * H/G to (g + 1) * H/G - 1 read key/value head g.
"""

import jax
import jax.numpy as jnp

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window: int | None, scale: float):
    """Softmax over the visible keys of scale * q @ k.T, applied to v."""
    q_BTHA, k_BTHA, v_BTHC = _padding_is_zero(segment_BT, *_all_heads(q_BTHA, k_BTGA, v_BTGC))
    score_BHTS = _scores(q_BTHA, k_BTHA, segment_BT, window, scale)
    lse_BHT = jax.nn.logsumexp(score_BHTS, axis=-1)
    share_BHTS = jnp.where(jnp.isneginf(score_BHTS), 0, jax.nn.softmax(score_BHTS)).astype(v_BTHC.dtype)
    return jnp.einsum("BHTS,BSHC->BTHC", share_BHTS, v_BTHC), lse_BHT, None


def backward(
    q_BTHA,
    k_BTGA,
    v_BTGC,
    segment_BT,
    lse_BHT,
    delta_BHT,
    d_o_BTHC,
    kept,
    *,
    window: int | None,
    scale: float,
):
    """See above; the heads of a group are summed."""
    del kept
    G = k_BTGA.shape[2]
    q_BTHA, k_BTHA, v_BTHC = _all_heads(q_BTHA, k_BTGA, v_BTGC)
    q_BTHA, k_BTHA, v_BTHC, d_o_BTHC = _padding_is_zero(segment_BT, q_BTHA, k_BTHA, v_BTHC, d_o_BTHC)
    share_BHTS = _shares(_scores(q_BTHA, k_BTHA, segment_BT, window, scale), lse_BHT)
    d_share_BHTS = jnp.einsum("BTHC,BSHC->BHTS", d_o_BTHC, v_BTHC, preferred_element_type=lse_BHT.dtype)
    d_score_BHTS = jnp.where(share_BHTS > 0, share_BHTS * (d_share_BHTS - delta_BHT[..., None]), 0) * scale
    d_score_BHTS, share_BHTS = (x.astype(q_BTHA.dtype) for x in (d_score_BHTS, share_BHTS))
    d_q_BTHA = jnp.einsum("BHTS,BSHA->BTHA", d_score_BHTS, k_BTHA)
    d_k_BTHA = jnp.einsum("BHTS,BTHA->BSHA", d_score_BHTS, q_BTHA)
    d_v_BTHC = jnp.einsum("BHTS,BTHC->BSHC", share_BHTS, d_o_BTHC)
    return d_q_BTHA, *(jnp.sum(_by_group(x, G), axis=3) for x in (d_k_BTHA, d_v_BTHC))


def visible(segment_BT, window: int | None):
    """bool[B, T, S]: not later than the query, in its segment, within the window, no padding."""
    at_T = jnp.arange(segment_BT.shape[1])
    behind_TS = at_T[:, None] - at_T[None, :]
    near_TS = (behind_TS >= 0) & (True if window is None else behind_TS < window)
    alike_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
    return near_TS[None] & alike_BTS & (segment_BT > 0)[:, None, :]


def _scores(q_BTHA, k_BTHA, segment_BT, window, scale):
    precise = jnp.promote_types(q_BTHA.dtype, jnp.float32)
    score_BHTS = jnp.einsum("BTHA,BSHA->BHTS", q_BTHA, k_BTHA, preferred_element_type=precise) * scale
    return jnp.where(visible(segment_BT, window)[:, None], score_BHTS, -jnp.inf)


def _shares(score_BHTS, lse_BHT):
    """exp(score - lse), zero where nothing is visible."""
    return jnp.exp(score_BHTS - jnp.where(jnp.isneginf(lse_BHT), 0, lse_BHT)[..., None])


def _all_heads(q_BTHA, k_BTGA, v_BTGC):
    """Keys and values once for every query head."""
    repeats = q_BTHA.shape[2] // max(k_BTGA.shape[2], 1)
    return q_BTHA, *(jnp.repeat(x, repeats, axis=2) for x in (k_BTGA, v_BTGC))


def _by_group(x_BTHA, num_groups: int):
    B, T, H, A = x_BTHA.shape
    return jnp.reshape(x_BTHA, (B, T, num_groups, H // num_groups, A))


def _padding_is_zero(segment_BT, *arrays):
    return tuple(jnp.where((segment_BT > 0)[:, :, None, None], x, 0) for x in arrays)
