"""Products of 8-bit integers on TPU, in Pallas (Mosaic).

Blocks of both operands stream through VMEM, their products are added up in int32 there and scaled at the end.
Floor: 2 M K N operations, at twice the rate of bfloat16 where the matrix unit has it, or half its bytes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.int8_matmul.reference import scaled
from pallas_kernels.varying import like

PLATFORM = "tpu"
MOST = (
    512,
    2048,
    1024,
)  # rows, terms and columns of the blocks: 6 MiB of operands and sums, and twice the result


def refusal(function: str, lhs_MK, rhs_KN, scale_M, scale_N, *, dtype, transpose_rhs) -> str | None:
    """Why these operands cannot be served, or None."""
    if transpose_rhs:
        return "it reads rhs as [K, N]"
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        return f"it makes bfloat16 and float32, not {jnp.dtype(dtype).name}"
    return None


def matmul(lhs_MK, rhs_KN, scale_M, scale_N, dtype, transpose_rhs) -> jax.Array:
    """See `reference.matmul`."""
    del transpose_rhs  # refused
    (M, K), N = lhs_MK.shape, rhs_KN.shape[1]
    m, k, n = (min(size, most) for size, most in zip((M, K, N), MOST, strict=True))
    call = pl.pallas_call(
        functools.partial(_kernel, K=K),
        like(lhs_MK, (M, N), dtype),
        grid=(pl.cdiv(N, n), pl.cdiv(M, m), pl.cdiv(K, k)),
        in_specs=[
            pl.BlockSpec((m, k), lambda j, i, step: (i, step)),
            pl.BlockSpec((k, n), lambda j, i, step: (step, j)),
            pl.BlockSpec((m, 1), lambda j, i, step: (i, 0)),
            pl.BlockSpec((1, n), lambda j, i, step: (0, j)),
        ],
        out_specs=pl.BlockSpec((m, n), lambda j, i, step: (i, j)),
        scratch_shapes=[pltpu.VMEM((m, n), jnp.int32)],
        compiler_params=pltpu.CompilerParams(("parallel", "parallel", "arbitrary"), vmem_limit_bytes=2**25),
        name="int8_matmul",
    )
    return call(lhs_MK, rhs_KN, scale_M[:, None], scale_N[None, :])


def _kernel(*refs, K: int):
    """Add one block's products to a tile of the result; scale it after the last."""
    lhs, rhs, scale_m1, scale_1n, out, sum_mn = refs
    step, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _():
        sum_mn[...] = jnp.zeros_like(sum_mn)

    left, right = lhs[...], rhs[...]
    if K % lhs.shape[1]:  # one of two is enough: integers behind the arrays are no NaN
        term = lax.broadcasted_iota(jnp.int32, left.shape, 1)
        left = jnp.where(term < K - step * lhs.shape[1], left, jnp.zeros_like(left))
    sum_mn[...] += jnp.dot(left, right, preferred_element_type=jnp.int32)

    @pl.when(step == last)
    def _():
        out[...] = scaled(sum_mn[...], scale_m1[...], scale_1n[...], out.dtype)
