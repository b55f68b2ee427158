"""Grouped products on any NVIDIA GPU, in the portable form of Pallas (lowered to Triton).

For `matmul` the rows are cut into pieces, each of one group and of a tile's height at most, wherever the
group begins; rows of nobody are pieces too, and their result is zero. A program makes one tile of the result,
one piece high, and writes it once, so that programs need no order. For `outer` a program adds up one tile of
one group's matrix over the rows of the group; large groups come first, so that none is left over in the end.

    rows    0 0 0 1 1 1 1 1 1 2 2 .                tiles of four rows
    pieces  0 0 0|1 1 1 1|1 1|2 2|.                (group 0, rows 0 to 3), (1, 3 to 7), (1, 7 to 9), ...

Tiles of the result are taken in bands: what runs at the same time lies in a square and shares what it reads.
Loads are masked; what lies outside of a group's rows or of the arrays is never read. Sums are in float32, and
float32 operands are not rounded to the tensor cores' shorter type.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.gpu_chips import this_chip
from pallas_kernels.grouped_matmul import triton_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Problem
from pallas_kernels.grouped_matmul.triton_tiles import Tiles
from pallas_kernels.grouped_matmul.visits import walk
from pallas_kernels.triton_blocks import Part, block, in_band, load, not_addressed, store
from pallas_kernels.varying import like

PLATFORM = "cuda"
DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))


class Pieces(NamedTuple):
    """Neighbouring rows of one group, in the order of the rows; the spare ones at the end are empty."""

    start_V: jax.Array
    end_V: jax.Array
    group_V: jax.Array  # -1 or the number of groups: nobody


def refusal(function: str, lhs_MK, rhs, start_G, end_G, *scale, dtype, **others) -> str | None:
    """Why these operands cannot be served, or None."""
    for used in (lhs_MK.dtype, dtype):
        if jnp.dtype(used) not in DTYPES:
            return f"it multiplies {', '.join(dtype.name for dtype in DTYPES)}, not {jnp.dtype(used).name}"
    return not_addressed(rhs)


def matmul(lhs_MK, rhs, start_G, end_G, *scales, transpose_rhs: bool, dtype) -> jax.Array:
    """See `reference.matmul`."""
    (M, K), G, N = lhs_MK.shape, rhs.shape[0], rhs.shape[1 if transpose_rhs else 2]
    problem = Problem(M, K, N, G, lhs_MK.dtype.itemsize, jnp.dtype(dtype).itemsize)
    chip = this_chip()
    tiles = triton_tiles.choose(triton_tiles.matmul_work, problem, chip)
    pieces = cut(start_G, end_G, M, tiles.height)
    num_pieces, tiles_n = len(pieces.start_V), pl.cdiv(N, tiles.width)
    band = (num_pieces, tiles_n, triton_tiles.span(tiles, chip))
    call = pl.pallas_call(
        functools.partial(_matmul_kernel, tiles=tiles, band=band, transpose_rhs=transpose_rhs),
        like(lhs_MK, (M, N), dtype),
        grid=(num_pieces * tiles_n,),
        compiler_params=pltriton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        name="grouped_matmul",
    )
    return call(*pieces, lhs_MK, rhs, *scales)


scaled_matmul = matmul  # scales are one more operand


def outer(lhs_MK, rhs_MN, start_G, end_G, dtype) -> jax.Array:
    """See `reference.outer`."""
    (M, K), G, N = lhs_MK.shape, start_G.shape[0], rhs_MN.shape[1]
    problem = Problem(M, K, N, G, lhs_MK.dtype.itemsize, jnp.dtype(dtype).itemsize)
    chip = this_chip()
    tiles = triton_tiles.choose(triton_tiles.outer_work, problem, chip)
    band = (pl.cdiv(K, tiles.height), pl.cdiv(N, tiles.width), triton_tiles.span(tiles, chip))
    largest_first_G = jnp.argsort(start_G - end_G).astype(jnp.int32)
    call = pl.pallas_call(
        functools.partial(_outer_kernel, tiles=tiles, band=band),
        like(lhs_MK, (G, K, N), dtype),
        grid=(G * band[0] * band[1],),
        compiler_params=pltriton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        name="grouped_outer",
    )
    return call(largest_first_G, start_G, end_G, lhs_MK, rhs_MN)


def cut(start_G, end_G, num_rows: int, height: int) -> Pieces:
    """Cut all rows into pieces of at most `height` rows, each of one group or of nobody."""
    first_S = jnp.concatenate([jnp.zeros_like(start_G[:1]), start_G, end_G[-1:]])
    stop_S = jnp.concatenate([start_G[:1], end_G, jnp.full_like(end_G[:1], num_rows)])
    segments = min(len(first_S), num_rows)  # that have rows
    most = (num_rows + segments * (height - 1)) // height
    segment_V, nth_V, real_V = walk(jnp.zeros_like(first_S), -(-(stop_S - first_S) // height), most)
    start_V = first_S[segment_V] + nth_V * height
    end_V = jnp.where(real_V, jnp.minimum(start_V + height, stop_S[segment_V]), start_V)
    return Pieces(start_V, end_V, segment_V - 1)


def _matmul_kernel(*refs, tiles: Tiles, band, transpose_rhs: bool):
    """One tile of the result, of the rows of one piece; 8-bit matrices become floats in registers."""
    start_V, end_V, group_V, lhs, rhs, *scales, out = refs
    v, n = in_band(pl.program_id(0), *band)
    (_, K), (_, N) = lhs.shape, out.shape
    start, group = start_V[v], group_V[v]
    rows, columns = Part(start, tiles.height, end_V[v] - start), block(n, tiles.width, N)

    def add_step(step, sum_mn):
        terms = block(step, tiles.depth, K)
        left = load(lhs, rows, terms)
        if transpose_rhs:
            return sum_mn + _dot(left, load(rhs, group, columns, terms).astype(left.dtype).T)
        return sum_mn + _dot(left, load(rhs, group, terms, columns).astype(left.dtype))

    @pl.when(rows.rest > 0)
    def _():
        held = (group >= 0) & (group < rhs.shape[0])
        steps = held.astype(jnp.int32) * pl.cdiv(K, tiles.depth)
        sum_mn = _fold(add_step, steps, tiles)
        for scale in scales:
            scale_n = load(scale, jnp.clip(group, 0, rhs.shape[0] - 1), columns)
            sum_mn = jnp.where(held, sum_mn * scale_n[None, :], sum_mn)
        store(out, sum_mn, rows, columns)


def _outer_kernel(*refs, tiles: Tiles, band):
    """One tile of one group's matrix."""
    group_P, start_G, end_G, lhs, rhs, out = refs
    place, in_matrix = pl.program_id(0) // (band[0] * band[1]), pl.program_id(0) % (band[0] * band[1])
    k, n = in_band(in_matrix, *band)
    group = group_P[place]
    start, end = start_G[group], end_G[group]
    _, K, N = out.shape
    wide, columns = block(k, tiles.height, K), block(n, tiles.width, N)

    def add_step(step, sum_kn):
        at = start + step * tiles.depth
        rows = Part(at, tiles.depth, end - at)
        return sum_kn + _dot(load(lhs, rows, wide).T, load(rhs, rows, columns))

    sum_kn = _fold(add_step, pl.cdiv(end - start, tiles.depth), tiles)
    store(out, sum_kn, group, wide, columns)


def _fold(add_step, steps, tiles: Tiles):
    zero = jnp.zeros((tiles.height, tiles.width), jnp.float32)
    return lax.fori_loop(0, steps, add_step, zero)


def _dot(left, right):
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)
