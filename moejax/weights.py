"""The verbs through which a layer touches a weight.

Layers never call `jnp.einsum` on a parameter: here the stored layout becomes the used one and the
parameter takes the activations' dtype, at one visible line.
"""

import jax.numpy as jnp

from moejax import sharding
from pallas_kernels import grouped_matmul, grouped_mlp


def einsum(eq: str, x, w):
    """`jnp.einsum(eq, x, w)` with a stored parameter `w`; letters as in `moejax.dims` decide the layout."""
    out_sharding = sharding.out(eq.split("->")[1])
    return jnp.einsum(eq, x, sharding.gather(w).astype(x.dtype), out_sharding=out_sharding)


def biased(x, b):
    """`x` plus a stored parameter `b` over its last dims."""
    return x + jnp.expand_dims(sharding.gather(b).astype(x.dtype), range(x.ndim - b.ndim))


def grouped(rows_RD, w_EDF, size_E):
    """Each group of rows times its expert's matrix; rows past the last group come out zero."""
    return grouped_matmul(rows_RD, w_EDF.astype(rows_RD.dtype), size_E)


def gated_mlp(rows_RD, gate_EDF, up_EDF, down_EFD, size_E, activation: str):
    """Each group of rows through its expert's gated network; rows past the last group come out zero."""
    used = (w.astype(rows_RD.dtype) for w in (gate_EDF, up_EDF, down_EFD))
    return grouped_mlp(rows_RD, *used, size_E, activation=activation)
