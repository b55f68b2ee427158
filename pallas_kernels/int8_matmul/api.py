"""Products of 8-bit integers with a scale per row (token) and per column (channel), for inference.

Serving Large Language Models on Huawei CloudMatrix384 (Zuo et al., 2025, arXiv 2506.12708), section on INT8:
rows are quantised as they come, columns of the weights once, and

    y = (xq @ wq in int32) * scale_M * scale_N      with scale = max |x| / 127

Letters: M rows, K contracted width, N result width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.int8_matmul import cpu, reference, tpu, triton
from pallas_kernels.varying import vary_alike

IMPLEMENTATIONS = {"tpu": tpu, "triton": triton, "xla_rows": cpu, "reference": reference}
LARGEST = 127  # codes are symmetric: -128 is not used
MOST_TERMS = (2**31 - 1) // 128**2  # more could leave int32


def quantize_rows(x_MK) -> tuple[jax.Array, jax.Array]:
    """Round every row to 255 equal steps around zero: x is about codes * scale[:, None].

    Halves go to the even code. A row of zeros has scale 1. A row that holds NaN or infinity has scale NaN and
    codes 0, so that what is made of it is NaN and no other row is touched.

    Args:
      x_MK: floats, [..., K].

    Returns:
      (int8 codes [..., K], float32 scales [...]).
    """
    x_MK = x_MK.astype(jnp.float32)
    largest_M = jnp.max(jnp.abs(x_MK), axis=-1)
    scale_M = jnp.maximum(largest_M / LARGEST, jnp.finfo(jnp.float32).tiny)
    scale_M = jnp.where(largest_M == 0, 1, scale_M)
    finite_M = jnp.isfinite(largest_M)
    steps_MK = jnp.round(x_MK / scale_M[..., None])
    codes_MK = jnp.clip(jnp.where(finite_M[..., None], steps_MK, 0), -LARGEST, LARGEST).astype(jnp.int8)
    return codes_MK, jnp.where(finite_M, scale_M, jnp.nan)


def quantize_channels(w_KN) -> tuple[jax.Array, jax.Array]:
    """`quantize_rows` for the columns of weights [..., K, N]: (int8 codes [..., K, N], scales [..., N])."""
    codes_NK, scale_N = quantize_rows(jnp.swapaxes(w_KN, -1, -2))
    return jnp.swapaxes(codes_NK, -1, -2), scale_N


def int8_matmul(
    lhs_MK,
    rhs_KN,
    scale_M,
    scale_N,
    *,
    transpose_rhs: bool = False,
    preferred_element_type=jnp.float32,
    implementation: str | None = None,
) -> jax.Array:
    """Multiply codes exactly, then scale: `out[m, n] = (lhs[m] @ rhs[:, n]) * scale_M[m] * scale_N[n]`.

    Differentiable in the scales; the codes are integers and have no gradient (see `quantized_matmul`).

    Args:
      lhs_MK: int8.
      rhs_KN: int8; [N, K] with `transpose_rhs`, as tables of embeddings are.
      scale_M: float32, of the rows.
      scale_N: float32, of the columns.
      preferred_element_type: of the result.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      out_MN.

    Raises:
      ValueError: operands that are not int8, shapes that do not fit, sums that could leave int32.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    _check(lhs_MK, rhs_KN, scale_M, scale_N, transpose_rhs)
    how = _How(jnp.dtype(preferred_element_type), implementation, transpose_rhs)
    scale_M, scale_N = scale_M.astype(jnp.float32), scale_N.astype(jnp.float32)
    return _matmul(*vary_alike(lhs_MK, rhs_KN, scale_M, scale_N), how)


def quantized_matmul(
    x_MK, rhs_KN, scale_N, *, transpose_rhs: bool = False, implementation: str | None = None
) -> jax.Array:
    """Multiply float rows, quantised on the way, with quantised weights; of the type of x.

    The gradient in x is straight-through: that of a product with the weights `rhs_KN * scale_N`, as if x had
    not been rounded. So adapters before and beside frozen 8-bit weights train. Codes have none.

    Args:
      x_MK: floats.
      rhs_KN, scale_N: what `quantize_channels` made of the weights.
      transpose_rhs, implementation: as in `int8_matmul`.
    """
    scale_N = scale_N.astype(jnp.float32)
    how = _How(x_MK.dtype, implementation, transpose_rhs)
    return _straight_through(*vary_alike(x_MK, rhs_KN, scale_N), how)


class _How(NamedTuple):
    """What of a product is known when it is traced."""

    dtype: jnp.dtype
    implementation: str | None
    transpose_rhs: bool


def _check(lhs_MK, rhs, scale_M, scale_N, transpose_rhs: bool) -> None:
    if lhs_MK.dtype != jnp.int8 or rhs.dtype != jnp.int8:
        raise ValueError(
            f"lhs is {lhs_MK.dtype}, rhs is {rhs.dtype}; expected int8: "
            "quantize_rows and quantize_channels make it of floats"
        )
    (M, K), (rhs_K, N) = lhs_MK.shape, rhs.shape[::-1] if transpose_rhs else rhs.shape
    if rhs_K != K or scale_M.shape != (M,) or scale_N.shape != (N,):
        wanted = "[N, K]" if transpose_rhs else "[K, N]"
        raise ValueError(
            f"lhs is {lhs_MK.shape}, rhs is {rhs.shape}, scales are {scale_M.shape} and {scale_N.shape}; "
            f"expected [M, K], {wanted}, [M] and [N]"
        )
    if K > MOST_TERMS:
        raise ValueError(
            f"{K} products of int8 could leave int32, at most {MOST_TERMS} can be added up; cut the product"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _matmul(lhs_MK, rhs_KN, scale_M, scale_N, how: _How):
    operands = (lhs_MK, rhs_KN, scale_M, scale_N)
    static = {"dtype": how.dtype, "transpose_rhs": how.transpose_rhs}
    if 0 in (*lhs_MK.shape, *rhs_KN.shape):
        return reference.matmul(*operands, **static)
    return implementations.run(IMPLEMENTATIONS, "matmul", how.implementation, operands, **static)


def _matmul_forward(lhs_MK, rhs_KN, scale_M, scale_N, how):
    return _matmul(lhs_MK, rhs_KN, scale_M, scale_N, how), (lhs_MK, rhs_KN, scale_M, scale_N)


def _matmul_backward(how, saved, grad_MN):
    """Each scale's gradient is a sum over what it multiplies."""
    lhs_MK, rhs_KN, scale_M, scale_N = saved
    how = how._replace(dtype=jnp.dtype(jnp.float32))
    grad_MN = grad_MN.astype(jnp.float32)
    by_columns_MN = _matmul(lhs_MK, rhs_KN, jnp.ones_like(scale_M), scale_N, how)
    by_rows_MN = _matmul(lhs_MK, rhs_KN, scale_M, jnp.ones_like(scale_N), how)
    return None, None, jnp.sum(grad_MN * by_columns_MN, axis=1), jnp.sum(grad_MN * by_rows_MN, axis=0)


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _straight_through(x_MK, rhs_KN, scale_N, how: _How):
    codes_MK, scale_M = quantize_rows(x_MK)
    return int8_matmul(
        codes_MK,
        rhs_KN,
        scale_M,
        scale_N,
        transpose_rhs=how.transpose_rhs,
        preferred_element_type=how.dtype,
        implementation=how.implementation,
    )


def _straight_through_forward(x_MK, rhs_KN, scale_N, how):
    return _straight_through(x_MK, rhs_KN, scale_N, how), (x_MK, rhs_KN, scale_N)


def _straight_through_backward(how, saved, grad_MN):
    x_MK, rhs_KN, scale_N = saved
    grad_MN = grad_MN.astype(jnp.float32)
    scaled_MN = (grad_MN * scale_N[None, :]).astype(x_MK.dtype)
    rhs_NK = (rhs_KN if how.transpose_rhs else rhs_KN.T).astype(x_MK.dtype)
    dx_MK = jnp.matmul(scaled_MN, rhs_NK, preferred_element_type=jnp.float32)
    unscaled_MN = _straight_through(x_MK, rhs_KN, jnp.ones_like(scale_N), how)
    return dx_MK.astype(x_MK.dtype), None, jnp.sum(grad_MN * unscaled_MN, axis=0)


_straight_through.defvjp(_straight_through_forward, _straight_through_backward)
