"""The permutations out of plain XLA operations, made for CPU; on GPU a fused gather is as good as a kernel.

They are nothing but traffic, so the floor is each row once: R D words read and written by `gather`, R D read
and N D written by `combine`. XLA fuses a gather with the arithmetic that follows it, but not with a sum over
its own dims: so the sum over a token's slots is a chain of K fused gathers and adds, which keeps nothing of
the [N, K, D] that it sums, and row products are taken for one slot of all tokens after the other.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.permute.reference import weigh

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def gather(x_ND, source_R) -> jax.Array:
    """See `reference.gather`."""
    return x_ND.at[source_R].get(mode="clip")


def combine(rows_RD, home_NK, gate_NK) -> jax.Array:
    """See `reference.combine`."""
    slots = zip(home_NK.T, gate_NK.T, strict=True)
    weighted = [weigh(gate_N, gather(rows_RD, home_N).astype(gate_N.dtype)) for home_N, gate_N in slots]
    return sum(weighted[1:], start=weighted[0]).astype(rows_RD.dtype)


def spread(y_ND, rows_RD, source_R, gate_R, home_NK) -> tuple[jax.Array, jax.Array]:
    """See `reference.spread`."""
    d_rows_RD = weigh(gate_R, gather(y_ND, source_R).astype(gate_R.dtype))

    def products(home_N):
        rows_ND = gather(rows_RD, home_N).astype(gate_R.dtype)
        return jnp.sum(rows_ND * y_ND.astype(gate_R.dtype), axis=1)

    return d_rows_RD.astype(rows_RD.dtype), lax.map(products, home_NK.T).T
