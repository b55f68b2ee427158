"""Segment attention on any NVIDIA GPU, in the portable form of Pallas (lowered to Triton).

    forward  a program has a block of queries of one head and walks over the key blocks that they see,
             with an online softmax
    queries  the same walk again for d_q, from lse and delta
    keys     a program has a block of keys and walks over the query blocks of all heads of their group, one
             after the other, so that what d_k and d_v add up to does not depend on who comes first

Blocks that are not full are masked; what lies outside of the arrays is read as zero. Sums are in float32,
and float32 operands are not rounded to the tensor cores' shorter type.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.segment_attention.blocks import Segments, Walk, key_walks, query_walks, zero_padding
from pallas_kernels.triton_blocks import block, load, not_addressed, store
from pallas_kernels.varying import like

PLATFORM = "cuda"
DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))
MOST_WIDTH = 256
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # below every score; finite, so that a row that has seen nothing yet needs no case of its own


class Tiles(NamedTuple):
    """Queries and keys of a block, and how programs run."""

    queries: int
    keys: int
    warps: int
    stages: int


def choose(function: str, width: int, itemsize: int) -> Tiles:
    """Blocks whose sums a program's threads hold in registers."""
    if itemsize == 4:
        return Tiles(32, 32, 4, 1)
    if function == "forward":
        return {64: Tiles(128, 32, 4, 3), 128: Tiles(128, 64, 8, 2)}.get(
            _power(width, 64), Tiles(64, 32, 8, 1)
        )
    return {64: Tiles(64, 32, 4, 2), 128: Tiles(64, 64, 8, 1)}.get(_power(width, 64), Tiles(32, 32, 8, 1))


def refusal(function: str, q_BTHA, k_BTGA, v_BTGC, *others, scale: float, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    if q_BTHA.dtype not in DTYPES:
        return f"it multiplies {', '.join(dtype.name for dtype in DTYPES)}, not {q_BTHA.dtype}"
    if max(q_BTHA.shape[3], v_BTGC.shape[3]) > MOST_WIDTH:
        return f"heads are {q_BTHA.shape[3]} and values {v_BTGC.shape[3]} wide; it serves up to {MOST_WIDTH}"
    if scale <= 0:
        return f"scale={scale} is not positive, and the greatest score would not have the greatest share"
    return next(filter(None, map(not_addressed, (q_BTHA, k_BTGA, v_BTGC))), None)


def forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window: int | None, scale: float):
    """See `reference`."""
    (B, T, H, _), C = q_BTHA.shape, v_BTGC.shape[3]
    tiles, segments = _prepare("forward", q_BTHA, v_BTGC, segment_BT)
    walk_BI4 = query_walks(segments.key_BP, tiles.queries, tiles.keys, window)
    out = like(q_BTHA, (B, T, H, C), q_BTHA.dtype), like(q_BTHA, (B, H, T), jnp.float32)
    kernel = functools.partial(_forward_kernel, tiles=tiles, window=window, unit=scale * LOG2_E)
    call = _call(kernel, out, B * walk_BI4.shape[1] * H, tiles, "segment_attention_forward")
    o_BTHC, lse_BHT = call(q_BTHA, k_BTGA, zero_padding(segment_BT, v_BTGC), *segments, walk_BI4)
    return o_BTHC, lse_BHT, None


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
    del kept
    B, H, G = q_BTHA.shape[0], q_BTHA.shape[2], k_BTGA.shape[2]
    tiles, segments = _prepare("backward", q_BTHA, v_BTGC, segment_BT)
    q_BTHA, k_BTGA, d_o_BTHC = (zero_padding(segment_BT, x) for x in (q_BTHA, k_BTGA, d_o_BTHC))
    v_BTGC = zero_padding(segment_BT, v_BTGC)
    real_B1T = (segment_BT > 0)[:, None]
    numbers = (jnp.where(real_B1T, x_BHT, 0) for x_BHT in (lse_BHT * LOG2_E, delta_BHT))
    operands = (q_BTHA, k_BTGA, v_BTGC, *segments, *numbers, d_o_BTHC)
    how = {"tiles": tiles, "window": window, "scale": scale}

    walk_BI4 = query_walks(segments.key_BP, tiles.queries, tiles.keys, window)
    out = like(q_BTHA, q_BTHA.shape, q_BTHA.dtype)
    programs = B * walk_BI4.shape[1] * H
    call = _call(functools.partial(_queries_kernel, **how), out, programs, tiles, "segment_attention_queries")
    d_q_BTHA = call(*operands, walk_BI4)

    walk_BJ4 = key_walks(segments.key_BP, tiles.queries, tiles.keys, window)
    out = tuple(like(x, x.shape, x.dtype) for x in (k_BTGA, v_BTGC))
    programs = B * walk_BJ4.shape[1] * G
    call = _call(functools.partial(_keys_kernel, **how), out, programs, tiles, "segment_attention_keys")
    return d_q_BTHA, *call(*operands, walk_BJ4)


def _prepare(function: str, q_BTHA, v_BTGC, segment_BT) -> tuple[Tiles, Segments]:
    width = max(q_BTHA.shape[3], v_BTGC.shape[3])
    tiles = choose(function, width, q_BTHA.dtype.itemsize)
    return tiles, Segments.of(segment_BT, max(tiles.queries, tiles.keys))


def _call(kernel, out, programs: int, tiles: Tiles, name: str):
    how = pltriton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    return pl.pallas_call(kernel, out, grid=(programs,), compiler_params=how, name=name)


def _power(width: int, least: int = 16) -> int:
    """Blocks are powers of two wide."""
    return max(least, 1 << (width - 1).bit_length())


def _widths(q, v):
    return (block(0, _power(x.shape[3]), x.shape[3]) for x in (q, v))


def _place(walks, heads: int, backwards: bool):
    """The batch row, block and head of a program; a block's heads side by side, the longest walks first."""
    blocks = walks.shape[1]
    program = pl.program_id(0)
    at = program // heads % blocks
    return program // (heads * blocks), blocks - 1 - at if backwards else at, program % heads


def _walk(walks, batch, at) -> Walk:
    return Walk(*(walks[batch, at, i] for i in range(len(Walk._fields))))


def _fold(step, walk: Walk, carry):
    """Walk over the blocks, without masks where they are full."""
    full = jnp.clip(walk.full, walk.first, walk.end)
    full_end = jnp.clip(walk.full_end, full, walk.end)
    for begin, end, whole in ((walk.first, full, False), (full, full_end, True), (full_end, walk.end, False)):
        carry = lax.fori_loop(begin, end, functools.partial(step, whole=whole), carry)
    return carry


def _dot(left, right):
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)


def _hide(score_QK, queries, keys, query_segment_Q, key_segment_K, window):
    """Scores, -inf where the query does not see the key."""
    at = lambda part, dim: part.start + lax.broadcasted_iota(jnp.int32, score_QK.shape, dim)
    behind_QK = at(queries, 0) - at(keys, 1)
    seen_QK = (query_segment_Q[:, None] == key_segment_K[None, :]) & (behind_QK >= 0)
    if window is not None:
        seen_QK &= behind_QK < window
    return jnp.where(seen_QK, score_QK, -jnp.inf)


def _forward_kernel(*refs, tiles: Tiles, window, unit):
    q, k, v, query_segments, key_segments, walks, o, lse = refs
    (_, T, H, _), G = q.shape, k.shape[2]
    batch, at, head = _place(walks, H, backwards=True)
    wide, wide_v = _widths(q, v)
    group, queries = head // (H // G), block(at, tiles.queries, T)
    q_QA = load(q, batch, queries, head, wide)
    segment_Q = load(query_segments, batch, queries._replace(rest=None))

    def step(j, carry, whole: bool):
        o_QC, most_Q, sum_Q = carry
        keys = block(j, tiles.keys, T)
        score_QK = _dot(q_QA, load(k, batch, keys, group, wide).T) * unit
        if not whole:
            segment_K = load(key_segments, batch, keys._replace(rest=None))
            score_QK = _hide(score_QK, queries, keys, segment_Q, segment_K, window)
        new_most_Q = jnp.maximum(most_Q, jnp.max(score_QK, axis=1))
        share_QK, shrink_Q = jnp.exp2(score_QK - new_most_Q[:, None]), jnp.exp2(most_Q - new_most_Q)
        o_QC = o_QC * shrink_Q[:, None] + _dot(share_QK.astype(v.dtype), load(v, batch, keys, group, wide_v))
        return o_QC, new_most_Q, sum_Q * shrink_Q + jnp.sum(share_QK, axis=1)

    start = (
        jnp.zeros((tiles.queries, wide_v.size), jnp.float32),
        *(jnp.full((tiles.queries,), value, jnp.float32) for value in (LOWEST, 0)),
    )
    o_QC, most_Q, sum_Q = _fold(step, _walk(walks, batch, at), start)
    blind_Q = sum_Q == 0
    safe_sum_Q = jnp.where(blind_Q, 1.0, sum_Q)
    store(o, o_QC / safe_sum_Q[:, None], batch, queries, head, wide_v)
    lse_Q = jnp.where(blind_Q, -jnp.inf, (most_Q + jnp.log2(safe_sum_Q)) / LOG2_E)
    store(lse, lse_Q, batch, head, queries)


def _queries_kernel(*refs, tiles: Tiles, window, scale):
    q, k, v, query_segments, key_segments, lse, delta, d_o, walks, d_q = refs
    (_, T, H, _), G = q.shape, k.shape[2]
    batch, at, head = _place(walks, H, backwards=True)
    wide, wide_v = _widths(q, v)
    group, queries = head // (H // G), block(at, tiles.queries, T)
    q_QA, d_o_QC = load(q, batch, queries, head, wide), load(d_o, batch, queries, head, wide_v)
    segment_Q = load(query_segments, batch, queries._replace(rest=None))
    lse_Q, delta_Q = (load(x, batch, head, queries) for x in (lse, delta))

    def step(j, d_q_QA, whole: bool):
        keys = block(j, tiles.keys, T)
        k_KA = load(k, batch, keys, group, wide)
        score_QK = _dot(q_QA, k_KA.T) * (scale * LOG2_E)
        if not whole:
            segment_K = load(key_segments, batch, keys._replace(rest=None))
            score_QK = _hide(score_QK, queries, keys, segment_Q, segment_K, window)
        share_QK = jnp.exp2(score_QK - lse_Q[:, None])
        d_share_QK = _dot(d_o_QC, load(v, batch, keys, group, wide_v).T)
        d_score_QK = share_QK * (d_share_QK - delta_Q[:, None])
        return d_q_QA + _dot(d_score_QK.astype(k.dtype), k_KA)

    zero_QA = jnp.zeros((tiles.queries, wide.size), jnp.float32)
    store(d_q, _fold(step, _walk(walks, batch, at), zero_QA) * scale, batch, queries, head, wide)


def _keys_kernel(*refs, tiles: Tiles, window, scale):
    q, k, v, query_segments, key_segments, lse, delta, d_o, walks, d_k, d_v = refs
    (_, T, H, _), G = q.shape, k.shape[2]
    batch, at, group = _place(walks, G, backwards=False)
    wide, wide_v = _widths(q, v)
    keys = block(at, tiles.keys, T)
    k_KA, v_KC = load(k, batch, keys, group, wide), load(v, batch, keys, group, wide_v)
    segment_K = load(key_segments, batch, keys._replace(rest=None))
    walk = _walk(walks, batch, at)

    def step(i, carry, head, whole: bool):
        d_k_KA, d_v_KC = carry
        queries = block(i, tiles.queries, T)
        q_QA, d_o_QC = load(q, batch, queries, head, wide), load(d_o, batch, queries, head, wide_v)
        lse_Q, delta_Q = (load(x, batch, head, queries) for x in (lse, delta))
        score_QK = _dot(q_QA, k_KA.T) * (scale * LOG2_E)
        if not whole:
            segment_Q = load(query_segments, batch, queries._replace(rest=None))
            score_QK = _hide(score_QK, queries, keys, segment_Q, segment_K, window)
        share_QK = jnp.exp2(score_QK - lse_Q[:, None])
        d_v_KC += _dot(share_QK.astype(v.dtype).T, d_o_QC)
        d_score_QK = share_QK * (_dot(d_o_QC, v_KC.T) - delta_Q[:, None])
        return d_k_KA + _dot(d_score_QK.astype(q.dtype).T, q_QA), d_v_KC

    start = tuple(jnp.zeros((tiles.keys, part.size), jnp.float32) for part in (wide, wide_v))
    of_head = lambda head, carry: _fold(functools.partial(step, head=head), walk, carry)
    d_k_KA, d_v_KC = lax.fori_loop(group * (H // G), (group + 1) * (H // G), of_head, start)
    store(d_k, d_k_KA * scale, batch, keys, group, wide)
    store(d_v, d_v_KC, batch, keys, group, wide_v)
