"""What an expert computes."""

import functools

import jax

from moejax import weights


def gated_experts(p, rows_RD, size_E):
    """SwiGLU experts (Shazeer 2020, arXiv 2002.05202) over rows sorted by expert; rows past the last are zero."""
    gate_RF = weights.grouped(rows_RD, p["gate"], size_E)
    up_RF = weights.grouped(rows_RD, p["up"], size_E)
    return weights.grouped(swish_gate(gate_RF, up_RF), p["down"], size_E)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swish_gate(gate, up):
    """silu(gate) * up; its backward pass keeps the two inputs alone, the widest arrays of a layer."""
    return jax.nn.silu(gate) * up
