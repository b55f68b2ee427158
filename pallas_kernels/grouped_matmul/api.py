"""Products of sorted row groups, each with its own matrix: the arithmetic of a mixture of experts.

Letters: M rows, K contracted width, N result width, G groups held here (`group_sizes` may count more).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul import cpu, reference
from pallas_kernels.varying import vary, varying_axes

IMPLEMENTATIONS = {"reference": reference, "xla_tiles": cpu}


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
    """Multiply rows that are sorted by group, each group by its own matrix: `out[m] = lhs[m] @ rhs[group of m]`.

    Rows that belong to no group held here are exactly zero in the result and get no gradient, whatever their
    buffers hold (NaN too). Differentiable in lhs and rhs to any order (reverse mode); accumulates in float32,
    or in float64 for float64 operands.

    Args:
      lhs_MK: rows; the first group_sizes[0] belong to group 0, the next group_sizes[1] to group 1, and so on.
      rhs_GKN: one matrix per group, [G, N, K] with `transpose_rhs`.
      group_sizes_G: int rows of every group, those before and after the groups of rhs included. Sizes that sum
        to more than M are cut at M.
      group_offset: int, may be traced: the group of rhs[0]. group_offset + G must not exceed the group count.
      transpose_rhs: contract with the last dim of rhs.
      preferred_element_type: of the result; default: the promoted type of lhs and rhs.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one for the platform.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    _check_sizes(group_sizes_G, group_offset, rhs_GKN.shape[0])
    if lhs_MK.ndim != 2 or rhs_GKN.ndim != 3 or lhs_MK.shape[1] != rhs_GKN.shape[2 if transpose_rhs else 1]:
        wanted = "[G, N, K]" if transpose_rhs else "[G, K, N]"
        raise ValueError(f"lhs is {lhs_MK.shape}, rhs is {rhs_GKN.shape}; expected [M, K] and {wanted}")
    dtype = jnp.dtype(preferred_element_type or jnp.promote_types(lhs_MK.dtype, rhs_GKN.dtype))
    start_G, end_G = _bounds(lhs_MK.shape[0], group_sizes_G, group_offset, rhs_GKN.shape[0])
    operands = _vary_alike(lhs_MK, rhs_GKN, start_G, end_G)
    return _matmul(*operands, transpose_rhs, dtype, _pick(implementation))


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
    """Sum the outer products of the rows of each group: `out[g] = lhs[rows of g].T @ rhs[rows of g]`, [G, K, N].

    The weight gradient of `grouped_matmul`, and like it blind to what rows outside the groups hold. Empty
    groups give zero. Arguments as there; `num_groups` is G (default: all groups of `group_sizes`).

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
    """
    num_groups = group_sizes_G.shape[0] if num_groups is None else num_groups
    _check_sizes(group_sizes_G, group_offset, num_groups)
    if lhs_MK.ndim != 2 or rhs_MN.ndim != 2 or lhs_MK.shape[0] != rhs_MN.shape[0]:
        raise ValueError(f"lhs is {lhs_MK.shape}, rhs is {rhs_MN.shape}; expected [M, K] and [M, N]")
    dtype = jnp.dtype(preferred_element_type or jnp.promote_types(lhs_MK.dtype, rhs_MN.dtype))
    start_G, end_G = _bounds(lhs_MK.shape[0], group_sizes_G, group_offset, num_groups)
    return _outer(*_vary_alike(lhs_MK, rhs_MN, start_G, end_G), dtype, _pick(implementation))


def _check_sizes(group_sizes_G, group_offset, num_groups: int) -> None:
    total = group_sizes_G.shape[0] if group_sizes_G.ndim == 1 else 0
    first = group_offset if isinstance(group_offset, int) else 0
    if not 0 <= first <= total - num_groups:
        raise ValueError(
            f"group_sizes is {group_sizes_G.shape}, but groups {first} to {first + num_groups - 1} were asked for; "
            "group_sizes counts all groups, group_offset is the first one held here"
        )


def _bounds(num_rows: int, group_sizes_G, group_offset, num_groups: int):
    """First and end row of every group held here."""
    end_G = jnp.minimum(jnp.cumsum(group_sizes_G, dtype=jnp.int32), num_rows)
    start_G = jnp.concatenate([jnp.zeros_like(end_G[:1]), end_G[:-1]])
    held = functools.partial(lax.dynamic_slice_in_dim, start_index=group_offset, slice_size=num_groups)
    return held(start_G), held(end_G)


def _vary_alike(*arrays):
    axes = varying_axes(*arrays)
    return tuple(vary(x, axes) for x in arrays)


def _pick(implementation: str | None) -> str:
    if implementation is None:
        return "xla_tiles"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    return implementation


def _promote(lhs, rhs):
    dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
    return lhs.astype(dtype), rhs.astype(dtype)


# The two products are each other's derivatives, so second and higher derivatives come by themselves.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs, dtype, implementation):
    lhs_MK, rhs = _promote(lhs_MK, rhs)
    if 0 in (*lhs_MK.shape, *rhs.shape):
        zero_MN = jnp.zeros((lhs_MK.shape[0], rhs.shape[1 if transpose_rhs else 2]), dtype)
        return vary(zero_MN, varying_axes(lhs_MK))
    return IMPLEMENTATIONS[implementation].matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs, dtype)


def _matmul_forward(lhs_MK, rhs, start_G, end_G, transpose_rhs, dtype, implementation):
    out_MN = _matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs, dtype, implementation)
    return out_MN, (lhs_MK, rhs, start_G, end_G)


def _matmul_backward(transpose_rhs, dtype, implementation, saved, grad_MN):
    lhs_MK, rhs, start_G, end_G = saved
    dlhs_MK = _matmul(grad_MN, rhs, start_G, end_G, not transpose_rhs, lhs_MK.dtype, implementation)
    left, right = (grad_MN, lhs_MK) if transpose_rhs else (lhs_MK, grad_MN)
    drhs = _outer(left, right, start_G, end_G, rhs.dtype, implementation)
    return dlhs_MK, drhs, None, None


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _outer(lhs_MK, rhs_MN, start_G, end_G, dtype, implementation):
    lhs_MK, rhs_MN = _promote(lhs_MK, rhs_MN)
    if 0 in (*lhs_MK.shape, *rhs_MN.shape):
        zero_GKN = jnp.zeros((start_G.shape[0], lhs_MK.shape[1], rhs_MN.shape[1]), dtype)
        return vary(zero_GKN, varying_axes(lhs_MK))
    return IMPLEMENTATIONS[implementation].outer(lhs_MK, rhs_MN, start_G, end_G, dtype)


def _outer_forward(lhs_MK, rhs_MN, start_G, end_G, dtype, implementation):
    return _outer(lhs_MK, rhs_MN, start_G, end_G, dtype, implementation), (lhs_MK, rhs_MN, start_G, end_G)


def _outer_backward(dtype, implementation, saved, grad_GKN):
    lhs_MK, rhs_MN, start_G, end_G = saved
    dlhs_MK = _matmul(rhs_MN, grad_GKN, start_G, end_G, True, lhs_MK.dtype, implementation)
    drhs_MN = _matmul(lhs_MK, grad_GKN, start_G, end_G, False, rhs_MN.dtype, implementation)
    return dlhs_MK, drhs_MN, None, None


_outer.defvjp(_outer_forward, _outer_backward)
