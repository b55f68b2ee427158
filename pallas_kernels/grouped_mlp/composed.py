"""The op out of the grouped products, for platforms that have kernels for these."""

from pallas_kernels import implementations
from pallas_kernels.grouped_matmul.api import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul.groups import sizes_behind
from pallas_kernels.grouped_swiglu import api as swiglu
from pallas_kernels.grouped_swiglu.activations import gated


def forward(x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *, activation, keep):
    """See `reference.forward`."""
    bounds = start_G, end_G
    static = {"activation": activation, "keep": keep}
    operands = x_ND, source_R, gate_GDF, up_GDF, *bounds
    h_RF, *kept = implementations.run(swiglu.IMPLEMENTATIONS, "forward", None, operands, **static)
    return grouped_matmul(h_RF, down_GFD, sizes_behind(*bounds), group_offset=1), *kept


def backward(d_y_RD, x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *kept, activation):
    """See `reference.backward`."""
    bounds = start_G, end_G
    operands = x_ND, source_R, gate_GDF, up_GDF, *bounds
    if kept:
        h_RF = gated(*kept, activation, x_ND.dtype)
    else:
        static = {"activation": activation, "keep": True}
        h_RF, *kept = implementations.run(swiglu.IMPLEMENTATIONS, "forward", None, operands, **static)
    size_S = sizes_behind(*bounds)
    d_h_RF = grouped_matmul(d_y_RD, down_GFD, size_S, group_offset=1, transpose_rhs=True)
    d_down_GFD = grouped_outer(h_RF, d_y_RD, size_S, group_offset=1, num_groups=len(start_G))
    slopes = implementations.run(
        swiglu.IMPLEMENTATIONS, "backward", None, (d_h_RF, *operands, *kept), activation=activation
    )
    return *slopes, d_down_GFD
