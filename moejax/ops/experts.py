"""What an expert computes."""

import jax

from moejax import weights


def gated_experts(p, rows_RD, size_E):
    """SwiGLU experts (Shazeer 2020, arXiv 2002.05202) over rows sorted by expert; rows past the last are zero."""
    gate_RF = weights.grouped(rows_RD, p["gate"], size_E)
    up_RF = weights.grouped(rows_RD, p["up"], size_E)
    return weights.grouped(jax.nn.silu(gate_RF) * up_RF, p["down"], size_E)
