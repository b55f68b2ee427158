"""Segment attention out of plain XLA operations, made for CPU and correct everywhere.

Queries are taken in chunks; a chunk's scores are for all keys that its causal prefix or its window holds and
for no others. Products are plain batched matmuls: heads before positions, a group's heads side by side.

    band    queries chunks x keys           without a window, T = 4 chunks in 2 bands
    0       [0, 2C)    2   x  2C            x .            every chunk of a band has scores for the whole
    1       [2C, 4C)   2   x  4C            x x            prefix that ends with the band

Chunks of one band run in a loop, so that the program does not grow with T; with eight bands 9/16 of the
square is computed. With a window a chunk has scores for the window before it. A chunk is short enough for its
scores to stay small, so that memory is linear in T. Rows that are short keep their shares, what the softmax
gives, for the backward pass, which then need not compute them again; memory is theirs to spend.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import implementations
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None
MASKED = -1e30  # a score below all others; finite, so that no difference of two is NaN
MIN_CHUNK, MOST_BANDS = 64, 8
SHORT = 512  # positions up to which shares are kept
SCORE_BYTES = 2**25  # of the scores of a chunk, if they can be so few


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


class Band(NamedTuple):
    """`count` chunks of so many `queries` from `first` on; a chunk's `keys` end with its last query."""

    first: int
    count: int
    queries: int
    keys: int  # or, where there are not so many, begin with the row

    def queries_of(self, first, x, axis: int = 3):
        """Those of the chunk that begins with query `first`."""
        return lax.dynamic_slice_in_dim(x, first, self.queries, axis)

    def keys_of(self, first, x, axis: int = 2):
        """What that chunk has scores for."""
        return lax.dynamic_slice_in_dim(x, self.first_key(first), self.keys, axis)

    def first_key(self, first):
        most = max if isinstance(first, int) else jnp.maximum
        return most(first + self.queries - self.keys, 0)

    def seen(self, first, segment_BT, window: int | None):
        """bool[B, 1, 1, Q, K]: which of those keys each query sees."""
        at_Q, at_K = first + jnp.arange(self.queries), self.first_key(first) + jnp.arange(self.keys)
        behind_QK = at_Q[:, None] - at_K[None, :]
        near_QK = (behind_QK >= 0) & (True if window is None else behind_QK < window)
        segment_BQ, segment_BK = self.queries_of(first, segment_BT, 1), self.keys_of(first, segment_BT, 1)
        alike_BQK = (segment_BQ[:, :, None] == segment_BK[:, None, :]) & (segment_BK > 0)[:, None, :]
        return (near_QK[None] & alike_BQK)[:, None, None]

    def each(self, chunk, carry, kept=None):
        """Fold `carry, out = chunk(carry, self, first, kept)`; join the outs at the queries."""
        if self.count == 1:
            return chunk(carry, self, self.first, kept)
        firsts = self.first + self.queries * jnp.arange(self.count)
        carry, out = lax.scan(lambda carry, first: chunk(carry, self, first, kept), carry, firsts)
        return carry, jax.tree.map(lambda x: lax.collapse(jnp.moveaxis(x, 0, 3), 3, 5), out)


def bands(T: int, score_bytes: int, window: int | None) -> list[Band]:
    """The bands of a row of T, where `score_bytes` is what a query's scores for one key take in all heads."""
    # at least two to a band: what is outside loops may run, and be alive, side by side
    fit = SCORE_BYTES // (score_bytes * T)
    chunk = min(T // (2 * MOST_BANDS), fit, T if window is None else window // 2)
    chunk = min(max(chunk, MIN_CHUNK), T)
    chunks = T // chunk
    num_bands = min(chunks, MOST_BANDS)
    edges = [i * chunks // num_bands for i in range(num_bands + 1)]
    reach = lambda end, queries: end if window is None else min(end, queries + window - 1)
    found = [
        Band(first * chunk, end - first, chunk, reach(end * chunk, chunk))
        for first, end in itertools.pairwise(edges)
    ]
    rest = T - chunks * chunk
    return found + ([Band(T - rest, 1, rest, reach(T, rest))] if rest else [])


def forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window: int | None, scale: float):
    """See `reference`."""
    B, T, H, _ = q_BTHA.shape
    G = k_BTGA.shape[2]
    keeps = T <= SHORT and implementations.platform() == "cpu"
    q_BGhTA, v_BGSC = _queries(q_BTHA, segment_BT, G), _keys(v_BTGC, segment_BT)
    k_BGSA = _keys(k_BTGA, segment_BT)

    def chunk(carry, band: Band, first, _):
        seen_B11QK, v_BGKC = band.seen(first, segment_BT, window), band.keys_of(first, v_BGSC)
        q_BGhQA, k_BGKA = band.queries_of(first, q_BGhTA), band.keys_of(first, k_BGSA)
        score_BGhQK = _scores(q_BGhQA, k_BGKA, seen_B11QK, scale)
        top_BGhQ1 = jnp.max(score_BGhQK, axis=-1, keepdims=True)
        share_BGhQK = jnp.where(seen_B11QK, jnp.exp(score_BGhQK - top_BGhQ1), 0)
        sum_BGhQ1 = jnp.sum(share_BGhQK, axis=-1, keepdims=True)
        share_BGRK = _rows(share_BGhQK.astype(v_BGKC.dtype))
        o_BGhQC = _heads(_dot("BGRK,BGKC->BGRC", share_BGRK, v_BGKC), H // G)
        o_BGhQC = o_BGhQC / jnp.where(sum_BGhQ1 == 0, 1, sum_BGhQ1)
        lse_BGhQ = (top_BGhQ1 + jnp.log(sum_BGhQ1))[..., 0]
        return carry, (o_BGhQC.astype(q_BTHA.dtype), lse_BGhQ, (share_BGRK, top_BGhQ1) if keeps else None)

    parts = [band.each(chunk, None)[1] for band in bands(T, _score_bytes(q_BTHA), window)]
    o_BGhTC, lse_BGhT = (jnp.concatenate([part[i] for part in parts], axis=3) for i in (0, 1))
    kept = [part[2] for part in parts] if keeps else None
    return _positions_first(o_BGhTC), jnp.reshape(lse_BGhT, (B, H, T)), kept


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
    """See `reference`."""
    B, T, H, _ = q_BTHA.shape
    G, precise = k_BTGA.shape[2], lse_BHT.dtype
    q_BGhTA, d_o_BGhTC = (_queries(x, segment_BT, G) for x in (q_BTHA, d_o_BTHC))
    k_BGSA, v_BGSC = (_keys(x, segment_BT) for x in (k_BTGA, v_BTGC))
    delta_BHT = jnp.where((segment_BT > 0)[:, None], delta_BHT, 0)
    lse_BGhT1, delta_BGhT1 = (jnp.reshape(x, (B, G, H // G, T, 1)) for x in (lse_BHT, delta_BHT))

    def chunk(carry, band: Band, first, kept):
        k_BGKA, v_BGKC = (band.keys_of(first, x) for x in (k_BGSA, v_BGSC))
        of_queries = (q_BGhTA, d_o_BGhTC, lse_BGhT1, delta_BGhT1)
        q_BGhQA, d_o_BGhQC, lse_BGhQ1, delta_BGhQ1 = (band.queries_of(first, x) for x in of_queries)
        if kept is None:
            seen_B11QK = band.seen(first, segment_BT, window)
            score_BGhQK = _scores(q_BGhQA, k_BGKA, seen_B11QK, scale)
            share_BGhQK = jnp.where(seen_B11QK, jnp.exp(score_BGhQK - lse_BGhQ1), 0)
            share_BGRK = _rows(share_BGhQK.astype(q_BTHA.dtype))
        else:  # the shares were not divided by their sum, which is less work here
            share_BGRK, top_BGhQ1 = kept
            unit_BGhQ1 = jnp.where(jnp.isneginf(lse_BGhQ1), 0, jnp.exp(top_BGhQ1 - lse_BGhQ1))
            d_o_BGhQC, delta_BGhQ1 = (d_o_BGhQC * unit_BGhQ1).astype(q_BTHA.dtype), delta_BGhQ1 * unit_BGhQ1
        q_BGRA, d_o_BGRC, delta_BGR1 = (_rows(x) for x in (q_BGhQA, d_o_BGhQC, delta_BGhQ1))
        d_share_BGRK = _dot("BGRC,BGKC->BGRK", d_o_BGRC, v_BGKC)
        d_score_BGRK = (share_BGRK * (d_share_BGRK - delta_BGR1)).astype(q_BTHA.dtype)
        d_q_BGRA = _dot("BGRK,BGKA->BGRA", d_score_BGRK, k_BGKA) * scale
        d_k_BGKA = _dot("BGRK,BGRA->BGKA", d_score_BGRK, q_BGRA)
        d_v_BGKC = _dot("BGRK,BGRC->BGKC", share_BGRK, d_o_BGRC)
        at = band.first_key(first)
        carry = tuple(_add_at(x, at, more) for x, more in zip(carry, (d_k_BGKA, d_v_BGKC), strict=True))
        return carry, _heads(d_q_BGRA.astype(q_BTHA.dtype), H // G)

    carry = tuple(vary(jnp.zeros(x.shape, precise), varying_axes(x)) for x in (k_BGSA, v_BGSC))
    d_q = []
    for i, band in enumerate(bands(T, _score_bytes(q_BTHA), window)):
        carry, d_q_BGhTA = band.each(chunk, carry, None if kept is None else kept[i])
        d_q.append(d_q_BGhTA)
    d_k_BGSA, d_v_BGSC = carry
    d_k_BTGA, d_v_BTGC = (jnp.swapaxes(x, 1, 2).astype(q_BTHA.dtype) for x in (d_k_BGSA * scale, d_v_BGSC))
    return _positions_first(jnp.concatenate(d_q, axis=3)), d_k_BTGA, d_v_BTGC


def _queries(x_BTHA, segment_BT, num_groups: int):
    """[B, G, h, T, A]: heads before positions, and zero where padding is."""
    B, T, H, A = x_BTHA.shape
    x_BTHA = jnp.where((segment_BT > 0)[:, :, None, None], x_BTHA, 0)
    return jnp.moveaxis(jnp.reshape(x_BTHA, (B, T, num_groups, H // num_groups, A)), 1, 3)


def _keys(x_BTGA, segment_BT):
    """[B, G, S, A]: the same for keys and values."""
    return jnp.swapaxes(jnp.where((segment_BT > 0)[:, :, None, None], x_BTGA, 0), 1, 2)


def _positions_first(x_BGhTA):
    """Undoes `_queries`."""
    return lax.collapse(jnp.moveaxis(x_BGhTA, 3, 1), 2, 4)


def _scores(q_BGhQA, k_BGKA, seen_B11QK, scale: float):
    score_BGRK = _dot("BGRA,BGKA->BGRK", _rows(q_BGhQA), k_BGKA) * scale
    return jnp.where(seen_B11QK, _heads(score_BGRK, q_BGhQA.shape[2]), MASKED)


def _rows(x_BGhQA):
    """A group's heads side by side, [B, G, R, A]: the products are then plain batched matmuls."""
    return lax.collapse(x_BGhQA, 2, 4)


def _heads(x_BGRA, num_heads: int):
    """Undoes `_rows`."""
    B, G, R, A = x_BGRA.shape
    return jnp.reshape(x_BGRA, (B, G, num_heads, R // num_heads, A))


def _dot(equation: str, left, right):
    """Summed in float32 at least."""
    precise = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(equation, left, right, preferred_element_type=precise)


def _add_at(x_BGSA, at, more_BGKA):
    if isinstance(at, int):  # sums of what is padded are one loop over all of them
        S, K = x_BGSA.shape[2], more_BGKA.shape[2]
        return x_BGSA + jnp.pad(more_BGKA, ((0, 0), (0, 0), (at, S - at - K), (0, 0)))
    before_BGKA = lax.dynamic_slice_in_dim(x_BGSA, at, more_BGKA.shape[2], axis=2)
    return lax.dynamic_update_slice_in_dim(x_BGSA, before_BGKA + more_BGKA, at, axis=2)


def _score_bytes(q_BTHA) -> int:
    """What the scores of a query in each row and head take for one key."""
    B, _, H, _ = q_BTHA.shape
    return B * H * jnp.promote_types(q_BTHA.dtype, jnp.float32).itemsize
