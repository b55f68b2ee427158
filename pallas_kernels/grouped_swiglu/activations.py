"""The functions that can gate, by name."""

import functools

import jax
import jax.numpy as jnp

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def gated(gate, up, activation: str, dtype) -> jax.Array:
    """activation(gate) * up, computed in float32 (float64 operands: in float64)."""
    accum = jnp.promote_types(gate.dtype, jnp.float32)
    return (ACTIVATIONS[activation](gate.astype(accum)) * up.astype(accum)).astype(dtype)
