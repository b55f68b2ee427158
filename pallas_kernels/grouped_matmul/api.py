"""Products of sorted row groups, each with its own matrix: the arithmetic of a mixture of experts.

Letters: M rows, K contracted width, N result width, G groups.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.grouped_matmul import cpu, reference, tpu, triton
from pallas_kernels.grouped_matmul.groups import bounds_of
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "triton": triton, "xla_tiles": cpu, "reference": reference}


def grouped_matmul(
    lhs_MK,
    rhs_GKN,
    group_sizes_G,
    *,
    group_offset=0,
    transpose_rhs: bool = False,
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
    return _matmul(*vary_alike(lhs_MK, rhs_GKN, *bounds), transpose_rhs, how)


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
