"""What an expert computes."""

import functools

import jax

from moejax import weights

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def gated_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Gated linear units (Shazeer 2020, arXiv 2002.05202) over rows sorted by expert; others are zero."""
    gate_RF = weights.grouped(rows_RD, p["gate"], size_E)
    up_RF = weights.grouped(rows_RD, p["up"], size_E)
    return gated_down(gate_RF, up_RF, p["down"], size_E, activation)


def plain_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Two-layer experts over rows sorted by expert: activation(x W_up) W_down; others are zero."""
    up_RF = weights.grouped(rows_RD, p["up"], size_E)
    return weights.grouped(ACTIVATIONS[activation](up_RF), p["down"], size_E)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=4)
def gated_down(gate_RF, up_RF, down_EFD, size_E, activation: str):
    """(activation(gate) * up) W_down; its backward pass computes the product again instead of keeping it."""
    return weights.grouped(gated(gate_RF, up_RF, activation), down_EFD, size_E)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def gated(gate, up, activation: str):
    """activation(gate) * up; its backward pass keeps the two inputs alone, the widest arrays of a layer."""
    return ACTIVATIONS[activation](gate) * up
