"""The meaning of the products of 8-bit integers, and the way on CPU, where XLA's dot beats float32."""

import jax
import jax.numpy as jnp

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def matmul(lhs_MK, rhs_KN, scale_M, scale_N, dtype) -> jax.Array:
    """out[m, n] = (sum over k of lhs[m, k] rhs[k, n]) scale[m] scale[n]; the sum is an exact int32."""
    sum_MN = jnp.matmul(lhs_MK, rhs_KN, preferred_element_type=jnp.int32)
    return scaled(sum_MN, scale_M[:, None], scale_N[None, :], dtype)


def scaled(sum_mn, scale_m1, scale_1n, dtype) -> jax.Array:
    """The end of every implementation."""
    return (sum_mn.astype(jnp.float32) * scale_m1 * scale_1n).astype(dtype)
