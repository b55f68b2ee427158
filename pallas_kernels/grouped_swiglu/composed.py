"""The op out of grouped products: a forward and a backward pass that every implementation can use.

Products of rows in no group are zero and blind to what the rows hold, so nothing is masked here.
"""

import jax

from pallas_kernels import implementations
from pallas_kernels.grouped_matmul.api import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul.groups import sizes_behind
from pallas_kernels.grouped_swiglu.activations import gated
from pallas_kernels.permute import api as movers


def forward(x_ND, source_R, gate_GDF, up_GDF, start_G, end_G, *, activation, keep, implementation=None):
    """See `reference.forward`; `implementation` is one of `grouped_matmul`."""
    how = {"group_offset": 1, "implementation": implementation, "preferred_element_type": x_ND.dtype}
    matrices, sizes = (gate_GDF, up_GDF), sizes_behind(start_G, end_G)
    gate_RF, up_RF = _products(rows(x_ND, source_R), matrices, sizes, how)
    kept = (gate_RF, up_RF) if keep else ()
    return gated(gate_RF, up_RF, activation, x_ND.dtype), *kept


def backward(
    d_h_RF, x_ND, source_R, gate_GDF, up_GDF, start_G, end_G, *kept, activation, implementation=None
):
    """See `reference.backward`."""
    rows_RD, sizes = rows(x_ND, source_R), sizes_behind(start_G, end_G)
    how = {"group_offset": 1, "implementation": implementation, "preferred_element_type": x_ND.dtype}
    pair_RF = kept or _products(rows_RD, (gate_GDF, up_GDF), sizes, how)
    _, pull = jax.vjp(lambda *pair_RF: gated(*pair_RF, activation, d_h_RF.dtype), *pair_RF)
    d_gate_RF, d_up_RF = pull(d_h_RF)
    back = lambda d_RF, rhs_GDF: grouped_matmul(d_RF, rhs_GDF, sizes, transpose_rhs=True, **how)
    d_rows_RD = back(d_gate_RF, gate_GDF) + back(d_up_RF, up_GDF)
    outer = lambda d_RF: grouped_outer(rows_RD, d_RF, sizes, num_groups=len(start_G), **how)
    return d_rows_RD, outer(d_gate_RF), outer(d_up_RF)


def rows(x_ND, source_R):
    """The tokens of all rows."""
    if source_R is None:
        return x_ND
    return implementations.run(movers.IMPLEMENTATIONS, "gather", None, (x_ND, source_R))


def _products(rows_RD, matrices, sizes, how) -> tuple[jax.Array, ...]:
    return tuple(grouped_matmul(rows_RD, rhs_GDF, sizes, **how) for rhs_GDF in matrices)
