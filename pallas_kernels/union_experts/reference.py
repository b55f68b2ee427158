"""The meaning of the union of experts: every expert for every token, E / |union| times the work."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def apply(x_ND, weight_NE, up_EDF, down_EFD, *gates, activation) -> jax.Array:
    """y[n] = sum_e weight[n, e] * (act(x[n] up[e]) or act(x[n] gate[e]) * (x[n] up[e])) down[e]."""
    dtype, accum = x_ND.dtype, accumulator(x_ND)
    x_ND, up_EDF, down_EFD, *gates = (x.astype(accum) for x in (x_ND, up_EDF, down_EFD, *gates))
    up_ENF, *gates = (jnp.einsum("ND,EDF->ENF", x_ND, matrix) for matrix in (up_EDF, *gates))
    h_ENF = weighted(up_ENF, *gates, weight=weight_NE.T[:, :, None], activation=activation)
    y_END = jnp.einsum("ENF,EFD->END", h_ENF, down_EFD)
    return jnp.sum(jnp.where(weight_NE.T[:, :, None] != 0, y_END, 0), axis=0).astype(dtype)


def weighted(up, *gate, weight, activation: str) -> jax.Array:
    """Between an expert's products; zero where it has no weight."""
    act = ACTIVATIONS[activation]
    h = act(gate[0]) * up if gate else act(up)
    return jnp.where(weight != 0, h * weight.astype(h.dtype), 0)


def accumulator(x) -> jnp.dtype:
    """The type in which products of `x` are summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


def union_of(weight_NE) -> tuple[jax.Array, jax.Array]:
    """The experts that some token gives weight, in order, then the others; and how many those are."""
    active_E = jnp.any(weight_NE != 0, axis=0)
    order_E = jnp.argsort(~active_E, stable=True).astype(jnp.int32)
    return order_E, jnp.sum(active_E, dtype=jnp.int32)
