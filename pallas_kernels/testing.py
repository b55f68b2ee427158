"""What every implementation of an op is held against: float64 numpy oracles, poison, bounds."""

import jax
import jax.numpy as jnp
import numpy as np


def oracle_matmul(lhs_MK, rhs_GKN, size_G, group_offset: int = 0) -> np.ndarray:
    """`grouped_matmul` in float64; reads no row outside the groups."""
    lhs_MK, rhs_GKN = np.asarray(lhs_MK, np.float64), np.asarray(rhs_GKN, np.float64)
    out_MN = np.zeros((lhs_MK.shape[0], rhs_GKN.shape[2]))
    for matrix_KN, rows in zip(rhs_GKN, group_rows(size_G, group_offset, len(rhs_GKN)), strict=True):
        out_MN[rows] = lhs_MK[rows] @ matrix_KN
    return out_MN


def oracle_outer(lhs_MK, rhs_MN, size_G, group_offset: int = 0, num_groups: int | None = None) -> np.ndarray:
    """`grouped_outer` in float64; reads no row outside the groups."""
    lhs_MK, rhs_MN = np.asarray(lhs_MK, np.float64), np.asarray(rhs_MN, np.float64)
    num_groups = len(size_G) - group_offset if num_groups is None else num_groups
    return np.stack([lhs_MK[rows].T @ rhs_MN[rows] for rows in group_rows(size_G, group_offset, num_groups)])


def group_rows(size_G, group_offset: int, num_groups: int) -> list[slice]:
    """The rows of each of `num_groups` groups from `group_offset` on."""
    end_G = np.cumsum(size_G)
    held = slice(group_offset, group_offset + num_groups)
    return [slice(end - size, end) for end, size in zip(end_G[held], np.asarray(size_G)[held], strict=True)]


def poison(x, size_G, group_offset: int = 0, num_groups: int | None = None):
    """`x` with NaN in all rows that belong to no held group."""
    num_groups = len(size_G) - group_offset if num_groups is None else num_groups
    held_M = np.zeros(len(x), bool)
    for rows in group_rows(size_G, group_offset, num_groups):
        held_M[rows] = True
    return jnp.where(held_M[:, None], x, jnp.nan)


def draw(shape, seed: int = 0, dtype=jnp.float32):
    """Normal (lhs_MK, rhs_GKN, cotangent_MN) for a `GroupedShape`."""
    lhs_key, rhs_key, out_key = jax.random.split(jax.random.key(seed), 3)
    lhs_MK = jax.random.normal(lhs_key, (shape.M, shape.K), dtype)
    rhs_GKN = jax.random.normal(rhs_key, (shape.G, shape.K, shape.N), dtype)
    return lhs_MK, rhs_GKN, jax.random.normal(out_key, (shape.M, shape.N), dtype)


def assert_close(actual, expected, terms: int = 1) -> None:
    """Hold a result to the rounding of its type after a sum of `terms` products of unit normals.

    Accumulation is in float32 or wider, so that a narrower type rounds once.
    """
    accumulated = jnp.finfo(jnp.promote_types(actual.dtype, jnp.float32)).eps * 4 * max(terms, 1)
    rounded = jnp.finfo(actual.dtype).eps
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rounded, atol=accumulated)


def oracle_attention(q_BTHA, k_BTGA, v_BTGC, segment_BT, d_o_BTHC, window=None, scale=None, d_lse_BHT=None):
    """(o, lse, d_q, d_k, d_v) of segment attention in float64, query by query; reads no padding."""
    arrays = (q_BTHA, k_BTGA, v_BTGC, d_o_BTHC)
    q_BTHA, k_BTGA, v_BTGC, d_o_BTHC = (np.asarray(x, np.float64) for x in arrays)
    (B, T, H, A), G = q_BTHA.shape, k_BTGA.shape[2]
    scale = A**-0.5 if scale is None else scale
    o_BTHC, lse_BHT = np.zeros(d_o_BTHC.shape), np.full((B, H, T), -np.inf)
    d_q_BTHA, d_k_BTGA, d_v_BTGC = np.zeros_like(q_BTHA), np.zeros_like(k_BTGA), np.zeros_like(v_BTGC)
    at_T, segment_BT = np.arange(T), np.asarray(segment_BT)
    for b, t in np.argwhere(segment_BT > 0):
        seen_T = (at_T <= t) & (segment_BT[b] == segment_BT[b, t])
        (seen,) = np.nonzero(seen_T & (True if window is None else t - at_T < window))
        for h in range(H):
            key_SA, value_SC = k_BTGA[b, seen, h * G // H], v_BTGC[b, seen, h * G // H]
            score_S = scale * key_SA @ q_BTHA[b, t, h]
            lse_BHT[b, h, t] = np.log(np.exp(score_S - score_S.max()).sum()) + score_S.max()
            share_S = np.exp(score_S - lse_BHT[b, h, t])
            o_BTHC[b, t, h] = share_S @ value_SC
            d_share_S = value_SC @ d_o_BTHC[b, t, h]
            d_score_S = share_S * (d_share_S - share_S @ d_share_S) * scale
            if d_lse_BHT is not None:
                d_score_S += share_S * np.asarray(d_lse_BHT, np.float64)[b, h, t] * scale
            d_q_BTHA[b, t, h] = d_score_S @ key_SA
            d_k_BTGA[b, seen, h * G // H] += d_score_S[:, None] * q_BTHA[b, t, h]
            d_v_BTGC[b, seen, h * G // H] += share_S[:, None] * d_o_BTHC[b, t, h]
    return o_BTHC, lse_BHT, d_q_BTHA, d_k_BTGA, d_v_BTGC


def draw_attention(shape, segment_BT, seed: int = 0, dtype=jnp.float32):
    """Normal (q, k, v, d_o) for an `AttentionShape`, NaN in padding."""
    H, G, A, C = shape.H, shape.G, shape.A, shape.value_width
    rng, real_BT11 = np.random.default_rng(seed), (np.asarray(segment_BT) > 0)[:, :, None, None]
    normal = lambda *width: np.where(real_BT11, rng.standard_normal((shape.B, shape.T, *width)), np.nan)
    return [jnp.asarray(normal(*width), dtype) for width in ((H, A), (G, A), (G, C), (H, C))]


def assert_attention_close(actual, expected) -> None:
    """Hold a result to a few roundings of its type, at the size of its largest entry.

    Shares and slopes are rounded to the type of the operands before they are multiplied, entry by entry.
    """
    eps = float(jnp.finfo(actual.dtype).eps)
    largest = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=16 * eps * largest)
