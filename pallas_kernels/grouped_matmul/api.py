"""Products of sorted row groups, each with its own matrix: the arithmetic of a mixture of experts.

Letters: M rows, K contracted width, N result width, G groups.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.grouped_matmul import cpu, gpu, reference, tpu, triton
from pallas_kernels.grouped_matmul.groups import bounds_of, spread
from pallas_kernels.int8_matmul.api import quantize_rows
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "hopper": gpu, "triton": triton, "xla_tiles": cpu, "reference": reference}


def grouped_matmul(
    lhs_MK,
    rhs_GKN,
    group_sizes_G,
    *,
    group_offset=0,
    transpose_rhs: bool = False,
    rhs_scale_GN=None,
    preferred_element_type=None,
    implementation: str | None = None,
) -> jax.Array:
    """Multiply rows that are sorted by group with their group's matrix: `out[m] = lhs[m] @ rhs[group of m]`.

    Rows that belong to no group of rhs are exactly zero in the result and get no gradient, whatever their
    buffers hold (NaN too). Differentiable in lhs and rhs in reverse mode, to any order outside
    `lax.scan`; under it once, because there jax mixes up what a second derivative needs. Accumulates in
    float32, or in float64 for float64 operands.

    Args:
      lhs_MK: rows; the first group_sizes[0] belong to group 0, the next group_sizes[1] to group 1, and so on.
      rhs_GKN: one matrix per group, [G, N, K] with `transpose_rhs`.
      group_sizes_G: int rows per group, for all groups, also those before and after the ones that rhs holds.
        Rows past M are cut off.
      group_offset: int, may be traced: the group of rhs[0]. rhs must not reach past the last group.
      transpose_rhs: contract with the last dim of rhs.
      rhs_scale_GN: for int8 matrices (see `quantize_channels`) the scale of every column of a group's result;
        lhs and scales have gradients then, rhs has none.
      preferred_element_type: of the result; default: the promoted type of lhs and rhs.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      out_MN.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    if lhs_MK.ndim != 2 or rhs_GKN.ndim != 3 or lhs_MK.shape[1] != rhs_GKN.shape[2 if transpose_rhs else 1]:
        wanted = "[G, N, K]" if transpose_rhs else "[G, K, N]"
        raise ValueError(f"lhs is {lhs_MK.shape}, rhs is {rhs_GKN.shape}; expected [M, K] and {wanted}")
    bounds = bounds_of(lhs_MK.shape[0], group_sizes_G, group_offset, rhs_GKN.shape[0])
    how = _how(lhs_MK, rhs_GKN, preferred_element_type, implementation)
    if rhs_scale_GN is not None:
        _check_scale(lhs_MK, rhs_GKN, rhs_scale_GN, transpose_rhs)
        scale_GN = rhs_scale_GN.astype(jnp.float32)
        return _scaled_matmul(vary_alike(lhs_MK, rhs_GKN, *bounds, scale_GN), transpose_rhs, how)
    return _matmul(*vary_alike(lhs_MK, rhs_GKN, *bounds), transpose_rhs, how)


def quantized_grouped_matmul(
    lhs_MK, rhs_GKN, group_sizes_G, rhs_scale_GN, *, implementation: str | None = None
) -> jax.Array:
    """`grouped_matmul` of float rows, which are rounded to 8 bits on the way, with 8-bit matrices.

    For inference: it has no gradient. See `quantized_matmul`.

    Args:
      lhs_MK: floats.
      rhs_GKN, rhs_scale_GN: what `quantize_channels` made of the matrices.
      group_sizes_G, implementation: as in `grouped_matmul`.

    Returns:
      out_MN, of the type of lhs.
    """
    _check_scale(lhs_MK, rhs_GKN, rhs_scale_GN, transpose_rhs=False)
    codes_MK, scale_M = quantize_rows(lhs_MK)
    if implementations.platform() != "cpu":  # which multiplies these by 8-bit matrices; codes are exact in it
        codes_MK = codes_MK.astype(jnp.bfloat16)
    start_G, end_G = bounds_of(len(lhs_MK), group_sizes_G, 0, len(rhs_GKN))
    operands = vary_alike(codes_MK, rhs_GKN, start_G, end_G, rhs_scale_GN.astype(jnp.float32))
    out_MN = _scaled_matmul(operands, False, _How(jnp.dtype(jnp.float32), implementation))
    scale_M = jnp.where(jnp.arange(len(lhs_MK)) < end_G[-1], scale_M, 0)  # what nobody has may be NaN
    return (out_MN * scale_M[:, None]).astype(lhs_MK.dtype)


def grouped_outer(
    lhs_MK,
    rhs_MN,
    group_sizes_G,
    *,
    group_offset=0,
    num_groups: int | None = None,
    preferred_element_type=None,
    implementation: str | None = None,
) -> jax.Array:
    """Sum the outer products of the rows of each group: `out[g] = lhs[rows of g].T @ rhs[rows of g]`.

    This is the weight gradient of `grouped_matmul`, and like it blind to what rows outside the groups hold.
    Arguments as there; `num_groups` is how many groups from `group_offset` on are wanted (default: all).

    Returns:
      out_GKN, zero for empty groups.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    if lhs_MK.ndim != 2 or rhs_MN.ndim != 2 or lhs_MK.shape[0] != rhs_MN.shape[0]:
        raise ValueError(f"lhs is {lhs_MK.shape}, rhs is {rhs_MN.shape}; expected [M, K] and [M, N]")
    num_groups = group_sizes_G.shape[0] if num_groups is None else num_groups
    bounds = bounds_of(lhs_MK.shape[0], group_sizes_G, group_offset, num_groups)
    how = _how(lhs_MK, rhs_MN, preferred_element_type, implementation)
    return _outer(*vary_alike(lhs_MK, rhs_MN, *bounds), how)


class _How(NamedTuple):
    """What of a product is known when it is traced."""

    dtype: jnp.dtype
    implementation: str | None  # None: the best of the platform that the program is compiled for


def _how(lhs, rhs, preferred_element_type, implementation: str | None) -> _How:
    dtype = preferred_element_type or jnp.promote_types(lhs.dtype, rhs.dtype)
    return _How(jnp.dtype(dtype), implementation)


def _check_scale(lhs_MK, rhs, scale_GN, transpose_rhs: bool) -> None:
    wanted = (rhs.shape[0], rhs.shape[1 if transpose_rhs else 2])
    if scale_GN.shape != wanted:
        raise ValueError(f"rhs_scale is {scale_GN.shape}, rhs is {rhs.shape}; expected a scale {wanted}")
    if rhs.dtype != jnp.int8 or not jnp.issubdtype(lhs_MK.dtype, jnp.floating):
        raise ValueError(
            f"lhs is {lhs_MK.dtype}, rhs is {rhs.dtype}; rhs_scale is for floats times int8: leave it out, "
            "or make rhs and its scales with quantize_channels"
        )


def _promote(lhs, rhs):
    dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
    return lhs.astype(dtype), rhs.astype(dtype)


# The two products are each other's derivatives, so second and higher derivatives come by themselves.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs: bool, how: _How):
    lhs_MK, rhs = _promote(lhs_MK, rhs)
    if 0 in (*lhs_MK.shape, *rhs.shape):
        zero_MN = jnp.zeros((lhs_MK.shape[0], rhs.shape[1 if transpose_rhs else 2]), how.dtype)
        return vary(zero_MN, varying_axes(lhs_MK))
    operands = (lhs_MK, rhs, start_G, end_G)
    return implementations.run(
        IMPLEMENTATIONS, "matmul", how.implementation, operands, transpose_rhs=transpose_rhs, dtype=how.dtype
    )


def _matmul_forward(lhs_MK, rhs, start_G, end_G, transpose_rhs, how):
    return _matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs, how), (lhs_MK, rhs, start_G, end_G)


def _matmul_backward(transpose_rhs, how, saved, grad_MN):
    lhs_MK, rhs, *bounds = saved
    left, right = (grad_MN, lhs_MK) if transpose_rhs else (lhs_MK, grad_MN)
    dlhs_MK = _matmul(grad_MN, rhs, *bounds, not transpose_rhs, how._replace(dtype=lhs_MK.dtype))
    drhs = _outer(left, right, *bounds, how._replace(dtype=rhs.dtype))
    return dlhs_MK, drhs, None, None


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _outer(lhs_MK, rhs_MN, start_G, end_G, how: _How):
    lhs_MK, rhs_MN = _promote(lhs_MK, rhs_MN)
    if 0 in (*lhs_MK.shape, *rhs_MN.shape):
        zero_GKN = jnp.zeros((start_G.shape[0], lhs_MK.shape[1], rhs_MN.shape[1]), how.dtype)
        return vary(zero_GKN, varying_axes(lhs_MK))
    operands = (lhs_MK, rhs_MN, start_G, end_G)
    return implementations.run(IMPLEMENTATIONS, "outer", how.implementation, operands, dtype=how.dtype)


def _outer_forward(lhs_MK, rhs_MN, start_G, end_G, how):
    return _outer(lhs_MK, rhs_MN, start_G, end_G, how), (lhs_MK, rhs_MN, start_G, end_G)


def _outer_backward(how, saved, grad_GKN):
    lhs_MK, rhs_MN, *bounds = saved
    dlhs_MK = _matmul(rhs_MN, grad_GKN, *bounds, True, how._replace(dtype=lhs_MK.dtype))
    drhs_MN = _matmul(lhs_MK, grad_GKN, *bounds, False, how._replace(dtype=rhs_MN.dtype))
    return dlhs_MK, drhs_MN, None, None


_outer.defvjp(_outer_forward, _outer_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _scaled_matmul(operands, transpose_rhs: bool, how: _How):
    """Of (lhs_MK, rhs, start_G, end_G, scale_GN)."""
    if any(0 in x.shape for x in operands):
        return _matmul(*operands[:4], transpose_rhs, how)
    static = {"transpose_rhs": transpose_rhs, "dtype": how.dtype}
    return implementations.run(IMPLEMENTATIONS, "scaled_matmul", how.implementation, operands, **static)


def _scaled_matmul_forward(operands, transpose_rhs, how):
    return _scaled_matmul(operands, transpose_rhs, how), operands


def _scaled_matmul_backward(transpose_rhs, how, operands, grad_MN):
    """Scales go into the rows of the gradient; their own gradient is a sum over the rows of their group."""
    lhs_MK, rhs, start_G, end_G, scale_GN = operands
    accum, ones = jnp.promote_types(lhs_MK.dtype, jnp.float32), lambda *shape: jnp.ones(shape, jnp.float32)
    unscaled = lambda left, transpose, dtype: _scaled_matmul(
        vary_alike(left, rhs, start_G, end_G, ones(len(rhs), rhs.shape[1 if transpose else 2])),
        transpose,
        how._replace(dtype=jnp.dtype(dtype)),
    )
    num_rows, grad_MN = len(lhs_MK), grad_MN.astype(accum)
    scaled_MN = (grad_MN * spread(scale_GN, start_G, end_G, num_rows)).astype(lhs_MK.dtype)
    dlhs_MK = unscaled(scaled_MN, not transpose_rhs, lhs_MK.dtype)
    weighed_MN = grad_MN * unscaled(lhs_MK, transpose_rhs, accum)
    one_M1, weighed_MN, *bounds = vary_alike(ones(num_rows, 1), weighed_MN, start_G, end_G)
    dscale_G1N = _outer(one_M1, weighed_MN, *bounds, how._replace(dtype=scale_GN.dtype))
    return ((dlhs_MK, None, None, None, dscale_G1N[:, 0]),)


_scaled_matmul.defvjp(_scaled_matmul_forward, _scaled_matmul_backward)
