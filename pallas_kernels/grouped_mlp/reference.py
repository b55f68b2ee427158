"""The meaning of the op: a row through its group's gated network, one masked group after the other."""

import jax

from pallas_kernels.grouped_matmul import reference as products
from pallas_kernels.grouped_swiglu import reference as swiglu

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def forward(x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *, activation, keep):
    """y[r] = (activation(x[source[r]] @ gate[g]) * (x[source[r]] @ up[g])) @ down[g], g the group of row r.

    Args:
      source_R: token of every row; None = row r is x[r].
      start_G: first row of every group, end_G: the row behind its last.
      keep: give the products with gate and up too.

    Returns:
      (y_RD, gate_RF, up_RF), all of x's type, zero in rows of no group; without `keep` (y_RD,).
    """
    bounds = start_G, end_G
    static = {"activation": activation, "keep": keep}
    h_RF, *kept = swiglu.forward(x_ND, source_R, gate_GDF, up_GDF, *bounds, **static)
    return products.matmul(h_RF, down_GFD, *bounds, False, x_ND.dtype), *kept


def backward(d_y_RD, x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *kept, activation):
    """Gradients of `forward`.

    Args:
      d_y_RD: the gradient of y; in rows of no group it may hold anything.
      kept: the products that `forward` gave too, or none.

    Returns:
      (d_rows_RD, d_gate_GDF, d_up_GDF, d_down_GFD): one gradient per row, zero in rows of no group; whoever
      knows the rows of every token sums them up.
    """
    rows_RD = x_ND if source_R is None else x_ND[source_R]
    static = {"activation": activation, "keep": False}
    of_rows = lambda rows_RD, *weights: forward(rows_RD, None, *weights, start_G, end_G, **static)[0]
    return jax.vjp(of_rows, rows_RD, gate_GDF, up_GDF, down_GFD)[1](d_y_RD)
