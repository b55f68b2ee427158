"""The meaning of the products of 8-bit integers."""

import jax
import jax.numpy as jnp

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def matmul(lhs_MK, rhs, scale_M, scale_N, dtype, transpose_rhs) -> jax.Array:
    """out[m, n] = (sum over k of lhs[m, k] rhs[k, n]) scale[m] scale[n]; the sum is an exact int32."""
    dims = (((1,), (1 if transpose_rhs else 0,)), ((), ()))
    sum_MN = jax.lax.dot_general(lhs_MK, rhs, dims, preferred_element_type=jnp.int32)
    return scaled(sum_MN, scale_M[:, None], scale_N[None, :], dtype)


def scaled(sum_mn, scale_m1, scale_1n, dtype) -> jax.Array:
    """The end of every implementation."""
    return (sum_mn.astype(jnp.float32) * scale_m1 * scale_1n).astype(dtype)
