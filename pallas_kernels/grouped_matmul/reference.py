"""The meaning of the grouped products: a masked product per group; G times the work, so an oracle."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.groups import spread
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs, dtype) -> jax.Array:
    """out[m] = lhs[m] @ rhs[g] (or rhs[g].T) for the group with start[g] <= m < end[g], else zero."""
    rhs_GKN = jnp.swapaxes(rhs, 1, 2) if transpose_rhs else rhs

    def add_group(out_MN, group):
        rhs_KN, start, end = group
        inside_M1 = _inside(lhs_MK, start, end)
        return jnp.where(inside_M1, _dot(jnp.where(inside_M1, lhs_MK, 0), rhs_KN), out_MN), None

    zero_MN = jnp.zeros((lhs_MK.shape[0], rhs_GKN.shape[2]), accumulator(lhs_MK))
    out_MN, _ = lax.scan(add_group, vary(zero_MN, varying_axes(lhs_MK)), (rhs_GKN, start_G, end_G))
    return out_MN.astype(dtype)


def scaled_matmul(lhs_MK, rhs, start_G, end_G, scale_GN, *, dtype, **static) -> jax.Array:
    """`matmul` with int8 rhs, each column of a group's product times its scale."""
    floats = rhs.astype(lhs_MK.dtype)
    sum_MN = matmul(lhs_MK, floats, start_G, end_G, dtype=accumulator(lhs_MK), **static)
    return (sum_MN * spread(scale_GN, start_G, end_G, len(lhs_MK))).astype(dtype)


def outer(lhs_MK, rhs_MN, start_G, end_G, dtype) -> jax.Array:
    """out[g] = lhs[start[g]:end[g]].T @ rhs[start[g]:end[g]]."""

    def one_group(group):
        inside_M1 = _inside(lhs_MK, *group)
        return _dot(jnp.where(inside_M1, lhs_MK, 0).T, jnp.where(inside_M1, rhs_MN, 0))

    return lax.map(one_group, (start_G, end_G)).astype(dtype)


def accumulator(x) -> jnp.dtype:
    """The type in which products of `x` are summed; those of 8-bit integers are exact."""
    return jnp.dtype(jnp.int32) if x.dtype == jnp.int8 else jnp.promote_types(x.dtype, jnp.float32)


def _dot(lhs, rhs):
    return jnp.matmul(lhs, rhs, preferred_element_type=accumulator(lhs))


def _inside(x_MK, start, end):
    row_M = jnp.arange(x_MK.shape[0])
    return ((row_M >= start) & (row_M < end))[:, None]
