"""The meaning of the op: a row's product with its group's two matrices, one masked group after the other."""

import jax

from pallas_kernels.grouped_matmul import reference as products
from pallas_kernels.grouped_swiglu.activations import gated

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def forward(x_ND, source_R, gate_GDF, up_GDF, start_G, end_G, *, activation, keep):
    """h[r] = activation(x[source[r]] @ gate[g]) * (x[source[r]] @ up[g]) in the group of row r, else zero.

    Args:
      source_R: token of every row; None = row r is x[r].
      start_G: first row of every group, end_G: the row behind its last.
      keep: give the two products too.

    Returns:
      (h_RF, gate_RF, up_RF), all of x's type; without `keep` (h_RF,).
    """
    rows_RD = x_ND if source_R is None else x_ND[source_R]
    multiply = lambda rhs: products.matmul(rows_RD, rhs, start_G, end_G, False, products.accumulator(x_ND))
    gate_RF, up_RF = multiply(gate_GDF), multiply(up_GDF)
    kept = (gate_RF.astype(x_ND.dtype), up_RF.astype(x_ND.dtype)) if keep else ()
    return gated(gate_RF, up_RF, activation, x_ND.dtype), *kept


def backward(d_h_RF, x_ND, source_R, gate_GDF, up_GDF, start_G, end_G, *kept, activation):
    """Gradients of `forward`.

    Args:
      d_h_RF: the gradient of h; in rows of no group it may hold anything.
      kept: the products that `forward` gave too, or none.

    Returns:
      (d_rows_RD, d_gate_GDF, d_up_GDF): one gradient per row, zero in rows of no group; whoever knows the
      rows of every token sums them up.
    """
    rows_RD, accum = x_ND if source_R is None else x_ND[source_R], products.accumulator(x_ND)
    static = {"activation": activation, "keep": False}

    def of_rows(*floats):
        rows_RD, *matrices = (x.astype(accum) for x in floats)
        return forward(rows_RD, None, *matrices, start_G, end_G, **static)[0]

    _, pull = jax.vjp(of_rows, rows_RD, gate_GDF, up_GDF)
    return pull(d_h_RF.astype(accum))
