"""Gated grouped products in float64."""

import numpy as np

from pallas_kernels.testing import group_rows

# name -> (function, slope), in float64
ACTIVATIONS = {
    "silu": lambda g: (g / (1 + np.exp(-g)), (1 + np.exp(-g) + g * np.exp(-g)) / (1 + np.exp(-g)) ** 2),
    "relu": lambda g: (np.maximum(g, 0), 1.0 * (g > 0)),
    "gelu": lambda g: (_gelu(g), (_gelu(g + 1e-5) - _gelu(g - 1e-5)) / 2e-5),
}


def _gelu(g):
    return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))


def oracle(floats, size_G, activation="silu", offset=0):
    """(h, d_rows, d_gate, d_up) of (rows, gate, up, d_h); reads no row outside the groups."""
    rows_RD, gate_GDF, up_GDF, d_h_RF = (np.asarray(x, np.float64) for x in floats)
    h_RF, *slopes = np.zeros_like(d_h_RF), *map(np.zeros_like, (rows_RD, gate_GDF, up_GDF))
    for g, rows in enumerate(group_rows(size_G, offset, len(gate_GDF))):
        gate, up = rows_RD[rows] @ gate_GDF[g], rows_RD[rows] @ up_GDF[g]
        act, slope = ACTIVATIONS[activation](gate)
        h_RF[rows] = act * up
        d_gate, d_up = d_h_RF[rows] * up * slope, d_h_RF[rows] * act
        slopes[0][rows] = d_gate @ gate_GDF[g].T + d_up @ up_GDF[g].T
        slopes[1][g], slopes[2][g] = rows_RD[rows].T @ d_gate, rows_RD[rows].T @ d_up
    return h_RF, *slopes
