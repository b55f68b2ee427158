"""Gated linear units (Shazeer 2020, arXiv 2002.05202) over sorted row groups: the first half of an expert.

Letters: N tokens, R rows, D width, F width of an expert, G groups.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.derivatives import differentiable
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.groups import bounds_of, sizes_behind
from pallas_kernels.grouped_swiglu import cpu, gpu, reference, tpu
from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS, gated
from pallas_kernels.permute.api import permute, unpermute
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "gpu": gpu, "xla_tiles": cpu, "reference": reference}


def grouped_swiglu(
    x_ND,
    gate_GDF,
    up_GDF,
    group_sizes_G,
    *,
    slots=None,
    activation: str = "silu",
    group_offset=0,
    keep: bool = True,
    implementation: str | None = None,
) -> jax.Array:
    """Gate the products of sorted rows: `h[r] = activation(row r @ gate[g]) * (row r @ up[g])`, g its group.

    Equals `activation(grouped_matmul(rows, gate, ...)) * grouped_matmul(rows, up, ...)`, where rows are
    `permute(x, *slots)`: they need not be there as a whole. Rows in no group are exactly zero and get no
    gradient, whatever they hold (NaN too). Accumulates in float32, or in float64 for float64 operands.

    Args:
      x_ND: tokens; without `slots` the rows themselves, sorted by group.
      gate_GDF: one matrix per group; up_GDF alike.
      group_sizes_G: int rows per group, for all groups, as in `grouped_matmul`.
      slots: (order_R, home_NK) as in `permute`: the token slot of every row and the row of every slot.
      activation: a key of `ACTIVATIONS`.
      group_offset: int, may be traced: the group of gate[0] and up[0].
      keep: keep both products for the backward pass; otherwise it computes them again.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      h_RF, of the promoted type of the operands.

    Raises:
      ValueError: shapes that do not fit, an unknown activation or implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    check_operands(x_ND, gate_GDF, up_GDF, slots, activation)
    num_rows, (G, D, F) = len(slots[0] if slots else x_ND), gate_GDF.shape
    bounds = bounds_of(num_rows, group_sizes_G, group_offset, G)
    dtype = jnp.result_type(x_ND, gate_GDF, up_GDF)
    if 0 in (len(x_ND), num_rows, G, D, F):
        return vary(jnp.zeros((num_rows, F), dtype), varying_axes(x_ND, gate_GDF, up_GDF, *bounds))
    floats = (x.astype(dtype) for x in (x_ND, gate_GDF, up_GDF))
    *operands, start_G, end_G = vary_alike(*floats, *(slots or ()), *bounds)
    how = How(activation, keep, implementation)
    return _swiglu(tuple(operands[:3]), (start_G, end_G, *operands[3:]), how)


def check_operands(x_ND, gate_GDF, up_GDF, slots, activation: str) -> None:
    """Refuse operands of `grouped_swiglu` that do not fit, with a ValueError."""
    if x_ND.ndim != 2 or gate_GDF.ndim != 3 or x_ND.shape[1] != gate_GDF.shape[1]:
        raise ValueError(f"x is {x_ND.shape}, gate is {gate_GDF.shape}; expected [N, D] and [G, D, F]")
    if gate_GDF.shape != up_GDF.shape:
        raise ValueError(f"gate is {gate_GDF.shape}, up is {up_GDF.shape}; expected the same shape")
    if slots is not None and (slots[0].ndim != 1 or slots[1].ndim != 2 or len(slots[1]) != len(x_ND)):
        raise ValueError(
            f"x is {x_ND.shape}, slots are {slots[0].shape} and {slots[1].shape}; "
            "expected [N, D], [R] and [N, K]"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")


class How(NamedTuple):
    """What is known when the program is traced."""

    activation: str
    keep: bool
    implementation: str | None  # None: the best of the platform that the program is compiled for


def passes(table):
    """(forward, backward) for `differentiable`, of an op whose rows can be gathered from tokens.

    What they take are floats, of which the tokens are the first; the first and end row of every group and,
    where tokens have slots, these; and `How`.
    """

    def forward(floats, rows, how: How, keep: bool):
        (x_ND, *weights), (start_G, end_G, *slots) = floats, rows
        operands = x_ND, _sources(*slots), *weights, start_G, end_G
        static = {"activation": how.activation, "keep": keep and how.keep}
        return implementations.run(table, "forward", how.implementation, operands, **static)

    def backward(d_out, floats, rows, kept, how: How):
        (x_ND, *weights), (start_G, end_G, *slots) = floats, rows
        operands = d_out, x_ND, _sources(*slots), *weights, start_G, end_G, *kept
        static = {"activation": how.activation}
        d_rows_RD, *d_weights = implementations.run(table, "backward", how.implementation, operands, **static)
        return (unpermute(d_rows_RD, *slots) if slots else d_rows_RD, *d_weights)

    return forward, backward


def _sources(order_R=None, home_NK=None):
    """The token of every row; None = every row is its own."""
    return None if order_R is None else jnp.minimum(order_R // home_NK.shape[1], len(home_NK) - 1)


def _meaning(floats, rows, how: How):
    (x_ND, gate_GDF, up_GDF), (start_G, end_G, *slots) = floats, rows
    rows_RD = permute(x_ND, *slots) if slots else x_ND
    multiply = lambda rhs: grouped_matmul(rows_RD, rhs, sizes_behind(start_G, end_G), group_offset=1)
    return gated(multiply(gate_GDF), multiply(up_GDF), how.activation, x_ND.dtype)


_swiglu = differentiable(*passes(IMPLEMENTATIONS), _meaning)
