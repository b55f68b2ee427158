"""Slot attention on any NVIDIA GPU, in the portable form of Pallas (lowered to Triton).

A program takes one tile, a stretch of neighbouring rows of one slot, and one key head. It walks over the
blocks of keys that the tile sees, finds their pages in the table and loads keys and values from there. Blocks
lie at multiples of their length, so that every row adds up the same blocks in the same order in any tile.

The grid has room for a tile per row; where rows share tiles, the spare programs end at once.

Floor: visible pages are read once per tile: 4 G A bytes per key in 16 bits; 4 H A FLOPs per row and key.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.slot_attention.reference import visible
from pallas_kernels.slot_attention.rows import Tiles, live_rows, tiles_of
from pallas_kernels.varying import like

PLATFORM = "cuda"
DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))
# By bytes of an operand; products of float32 are not the tensor cores', and keep both sides in registers.
BLOCK_KEYS = {2: 64, 4: 16}
TILE_QUERIES = {2: 64, 4: 16}  # of one key head, padding included
LEAST_QUERIES = 16  # of a product on the tensor cores
WIDEST_HEAD = 256
LEAST = -0.5 * float(jnp.finfo(jnp.float32).max)  # a score that is none, but finite


class Sizes(NamedTuple):
    """Lengths that the kernel is made for."""

    R: int  # query heads of a key head
    padded_R: int  # a power of two
    T: int  # rows of a tile, at most
    A: int
    padded_A: int  # a power of two
    K: int  # keys of a block


def sizes(q_NHA, page_PGSA) -> Sizes:
    """What the kernel is made for with these operands."""
    (_, H, A), G = q_NHA.shape, page_PGSA.shape[1]
    R = pl.next_power_of_2(H // G)
    itemsize = max(q_NHA.dtype.itemsize, page_PGSA.dtype.itemsize)
    padded_A = max(pl.next_power_of_2(A), LEAST_QUERIES)
    return Sizes(H // G, R, max(TILE_QUERIES[itemsize] // R, 1), A, padded_A, BLOCK_KEYS[itemsize])


def refusal(function, *operands, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    q_NHA, page_k_PGSA, page_v_PGSA, *_ = operands
    for x in (q_NHA, page_k_PGSA, page_v_PGSA):
        if jnp.dtype(x.dtype) not in DTYPES:
            return f"it multiplies {', '.join(dtype.name for dtype in DTYPES)}, not {x.dtype.name}"
    if q_NHA.shape[2] > WIDEST_HEAD:
        return f"a head is {q_NHA.shape[2]} wide, more than {WIDEST_HEAD}"
    if page_k_PGSA.size >= 2**31:
        return f"pages of {page_k_PGSA.shape} have more elements than 32 bits count"
    return None


def attend(*operands, window, scale) -> jax.Array:
    """See `reference.attend`."""
    q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ = operands
    of, (N, G) = sizes(q_NHA, page_k_PGSA), (len(slot_N), page_k_PGSA.shape[1])
    live_N = live_rows(slot_N, position_N, page_table_QJ, page_k_PGSA.shape[2])
    tiles, _ = tiles_of(slot_N, position_N, live_N, of.T)
    call = pl.pallas_call(
        functools.partial(_kernel, of=of, window=window, scale=scale),
        like(q_NHA, q_NHA.shape, q_NHA.dtype),
        grid=(N, G),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=2),
        name="slot_attention",
    )
    o_NHA = call(*tiles, page_table_QJ, q_NHA, page_k_PGSA, page_v_PGSA)
    return jnp.where(live_N[:, None, None], o_NHA, 0)


def _kernel(*refs, of: Sizes, window, scale):
    """The rows of one tile against one key head."""
    tiles, (table, q, k, v, o) = Tiles(*refs[:4]), refs[4:]
    tile, g = pl.program_id(0), pl.program_id(1)
    first_row, count, slot, position = (x_V[tile] for x_V in tiles)
    S, dtype = k.shape[2], jnp.promote_types(q.dtype, k.dtype)
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, precision=exact, preferred_element_type=jnp.float32)

    @pl.when(count > 0)
    def _():
        query_M = jnp.arange(max(of.T * of.padded_R, LEAST_QUERIES), dtype=jnp.int32)
        i_M, r_M = query_M // of.padded_R, query_M % of.padded_R
        a_A = jnp.arange(of.padded_A, dtype=jnp.int32)
        at = (
            (first_row + jnp.minimum(i_M, count - 1))[:, None],
            (g * of.R + jnp.minimum(r_M, of.R - 1))[:, None],
        )
        real_MA = ((i_M < count) & (r_M < of.R))[:, None] & (a_A < of.A)[None, :]
        at = (*at, jnp.minimum(a_A, of.A - 1)[None, :])
        q_MA = pltriton.load(q.at[at], mask=real_MA, other=0).astype(dtype)
        position_M1 = (position + jnp.minimum(i_M, count - 1))[:, None]
        first_key = 0 if window is None else jnp.maximum(position - window + 1, 0)
        end_key = position + count

        def body(block, carry):
            top_M1, sum_M1, o_MA = carry
            key_K = block * of.K + jnp.arange(of.K, dtype=jnp.int32)
            seen_K = (key_K >= first_key) & (key_K < end_key)
            near_K = jnp.clip(key_K, first_key, end_key - 1)
            page_K1 = pltriton.load(table.at[slot, near_K // S])[:, None]
            at = page_K1, g, (near_K % S)[:, None], jnp.minimum(a_A, of.A - 1)[None, :]
            held_KA = seen_K[:, None] & (a_A < of.A)[None, :]
            k_KA = pltriton.load(k.at[at], mask=held_KA, other=0).astype(dtype)
            v_KA = pltriton.load(v.at[at], mask=held_KA, other=0).astype(dtype)
            seen_MK = visible(key_K[None, :], position_M1, window)
            score_MK = jnp.where(seen_MK, dot(q_MA, k_KA.T) * scale, LEAST)
            new_M1 = jnp.maximum(top_M1, jnp.max(score_MK, axis=1)[:, None])
            weight_MK = jnp.where(seen_MK, jnp.exp(score_MK - new_M1), 0.0)
            kept_M1 = jnp.exp(top_M1 - new_M1)
            sum_M1 = sum_M1 * kept_M1 + jnp.sum(weight_MK, axis=1)[:, None]
            return new_M1, sum_M1, o_MA * kept_M1 + dot(weight_MK.astype(dtype), v_KA)

        zero_M1 = jnp.zeros((len(query_M), 1), jnp.float32)
        start = (zero_M1 + LEAST, zero_M1, jnp.zeros((len(query_M), of.padded_A), jnp.float32))
        end_block = (end_key - 1) // of.K + 1
        _, sum_M1, o_MA = lax.fori_loop(first_key // of.K, end_block, body, start)
        o_at = (first_row + i_M)[:, None], (g * of.R + r_M)[:, None], a_A[None, :]
        pltriton.store(o.at[o_at], (o_MA / sum_M1).astype(o.dtype), mask=real_MA)
