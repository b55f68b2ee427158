"""Gated two-layer networks over sorted row groups: all that an expert of today's language models computes.

Letters: N tokens, R rows, D width, F width of an expert, G groups.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import differentiable
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.groups import bounds_of, sizes_behind
from pallas_kernels.grouped_mlp import cpu, gpu, reference, tpu
from pallas_kernels.grouped_swiglu.api import How, check_operands, grouped_swiglu, passes
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "gpu": gpu, "xla_tiles": cpu, "reference": reference}


def grouped_mlp(
    x_ND,
    gate_GDF,
    up_GDF,
    down_GFD,
    group_sizes_G,
    *,
    slots=None,
    activation: str = "silu",
    group_offset=0,
    keep: bool = True,
    implementation: str | None = None,
) -> jax.Array:
    """Send rows through their group's network: `y = (activation(row @ gate[g]) * (row @ up[g])) @ down[g]`.

    Equals `grouped_matmul(grouped_swiglu(x, gate, up, ...), down, ...)`, whose gated rows need not be there
    as a whole. Rows in no group are exactly zero and get no gradient, whatever they hold (NaN too).
    Accumulates in float32, or in float64 for float64 operands.

    Args:
      x_ND: tokens; without `slots` the rows themselves, sorted by group.
      gate_GDF: one matrix per group; up_GDF alike, down_GFD the way back.
      group_sizes_G: int rows per group, for all groups, as in `grouped_matmul`.
      slots: (order_R, home_NK) as in `permute`: the token slot of every row and the row of every slot.
      activation: a key of `grouped_swiglu.activations.ACTIVATIONS`.
      group_offset: int, may be traced: the group of gate[0], up[0] and down[0].
      keep: keep the products with gate and up for the backward pass; otherwise it computes them again.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      y_RD, of the promoted type of the operands.

    Raises:
      ValueError: shapes that do not fit, an unknown activation or implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    check_operands(x_ND, gate_GDF, up_GDF, slots, activation)
    num_rows, (G, D, F) = len(slots[0] if slots else x_ND), gate_GDF.shape
    if down_GFD.shape != (G, F, D):
        raise ValueError(
            f"gate is {gate_GDF.shape}, down is {down_GFD.shape}; expected [G, D, F] and [G, F, D]"
        )
    bounds = bounds_of(num_rows, group_sizes_G, group_offset, G)
    floats = x_ND, gate_GDF, up_GDF, down_GFD
    dtype = jnp.result_type(*floats)
    if 0 in (len(x_ND), num_rows, G, D, F):
        return vary(jnp.zeros((num_rows, D), dtype), varying_axes(*floats, *bounds))
    floats = (x.astype(dtype) for x in floats)
    *operands, start_G, end_G = vary_alike(*floats, *(slots or ()), *bounds)
    how = How(activation, keep, implementation)
    return _mlp(tuple(operands[:4]), (start_G, end_G, *operands[4:]), how)


def _meaning(floats, rows, how: How):
    (x_ND, gate_GDF, up_GDF, down_GFD), (start_G, end_G, *slots) = floats, rows
    groups = {"group_sizes_G": sizes_behind(start_G, end_G), "group_offset": 1}
    h_RF = grouped_swiglu(
        x_ND, gate_GDF, up_GDF, slots=tuple(slots) or None, activation=how.activation, keep=False, **groups
    )
    return grouped_matmul(h_RF, down_GFD, **groups)


_mlp = differentiable(*passes(IMPLEMENTATIONS), _meaning)
