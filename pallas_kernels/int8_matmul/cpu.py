"""Products of 8-bit integers on CPU, where XLA's dot beats that of float32 for two rows or more."""

import jax
import jax.numpy as jnp

from pallas_kernels.int8_matmul import reference

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def matmul(lhs_MK, rhs, scale_M, scale_N, dtype, transpose_rhs) -> jax.Array:
    """See `reference.matmul`. For one row alone XLA has a plain loop, a tenth as fast as its dot for two."""
    num_rows = len(lhs_MK)
    if num_rows == 1:
        lhs_MK, scale_M = (jnp.concatenate([x, x]) for x in (lhs_MK, scale_M))
    return reference.matmul(lhs_MK, rhs, scale_M, scale_N, dtype, transpose_rhs)[:num_rows]
