"""Products of 8-bit integers on any NVIDIA GPU, in the portable form of Pallas (lowered to Triton).

A program adds up one tile of the result in int32 on the tensor cores and scales it in registers. Floor:
2 M K N operations at twice the rate of bfloat16, or half its bytes where there are few rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.gpu_chips import this_chip
from pallas_kernels.grouped_matmul import triton_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Problem
from pallas_kernels.grouped_matmul.triton_tiles import Tiles
from pallas_kernels.int8_matmul.reference import scaled
from pallas_kernels.triton_blocks import block, in_band, load, not_addressed, store
from pallas_kernels.varying import like

PLATFORM = "cuda"


def refusal(function: str, lhs_MK, rhs_KN, scale_M, scale_N, *, dtype, transpose_rhs) -> str | None:
    """Why these operands cannot be served, or None."""
    if transpose_rhs:
        return "it reads rhs as [K, N]"
    return not_addressed(lhs_MK) or not_addressed(rhs_KN)


def matmul(lhs_MK, rhs_KN, scale_M, scale_N, dtype, transpose_rhs) -> jax.Array:
    """See `reference.matmul`."""
    del transpose_rhs  # refused
    (M, K), N = lhs_MK.shape, rhs_KN.shape[1]
    chip = this_chip()
    problem = Problem(M, K, N, 1, lhs_MK.dtype.itemsize, jnp.dtype(dtype).itemsize)
    tiles = triton_tiles.choose(triton_tiles.matmul_work, problem, chip)
    band = (pl.cdiv(M, tiles.height), pl.cdiv(N, tiles.width), triton_tiles.span(tiles, chip))
    call = pl.pallas_call(
        functools.partial(_kernel, tiles=tiles, band=band),
        like(lhs_MK, (M, N), dtype),
        grid=(band[0] * band[1],),
        compiler_params=pltriton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        name="int8_matmul",
    )
    return call(lhs_MK, rhs_KN, scale_M, scale_N)


def _kernel(*refs, tiles: Tiles, band):
    """One tile of the result."""
    lhs, rhs, scale_M, scale_N, out = refs
    m, n = in_band(pl.program_id(0), *band)
    (M, K), N = lhs.shape, rhs.shape[1]
    rows, columns = block(m, tiles.height, M), block(n, tiles.width, N)

    def add_step(step, sum_mn):
        terms = block(step, tiles.depth, K)
        left, right = load(lhs, rows, terms), load(rhs, terms, columns)
        return sum_mn + jnp.dot(left, right, preferred_element_type=jnp.int32)

    zero_mn = jnp.zeros((tiles.height, tiles.width), jnp.int32)
    sum_mn = lax.fori_loop(0, pl.cdiv(K, tiles.depth), add_step, zero_mn)
    scale_m, scale_n = load(scale_M, rows), load(scale_N, columns)
    store(out, scaled(sum_mn, scale_m[:, None], scale_n[None, :], out.dtype), rows, columns)
