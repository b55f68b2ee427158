"""Gated linear units (Shazeer 2020, arXiv 2002.05202) over sorted row groups: the first half of an expert.

Letters: N tokens, R rows, D width, F width of an expert, G groups.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.grouped_matmul.groups import bounds_of
from pallas_kernels.grouped_swiglu import composed, cpu, gpu, reference
from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS
from pallas_kernels.permute.api import unpermute
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"gpu": gpu, "xla_tiles": cpu, "reference": reference}


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
    _check(x_ND, gate_GDF, up_GDF, slots, activation)
    num_rows, (G, D, F) = len(slots[0] if slots else x_ND), gate_GDF.shape
    bounds = bounds_of(num_rows, group_sizes_G, group_offset, G)
    dtype = jnp.result_type(x_ND, gate_GDF, up_GDF)
    if 0 in (len(x_ND), num_rows, G, D, F):
        return vary(jnp.zeros((num_rows, F), dtype), varying_axes(x_ND, gate_GDF, up_GDF, *bounds))
    floats = (x.astype(dtype) for x in (x_ND, gate_GDF, up_GDF))
    *operands, start_G, end_G = vary_alike(*floats, *(slots or ()), *bounds)
    return _swiglu(*operands[:3], (start_G, end_G, *operands[3:]), _How(activation, keep, implementation))


def _check(x_ND, gate_GDF, up_GDF, slots, activation: str) -> None:
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


class _How(NamedTuple):
    """What is known when the program is traced."""

    activation: str
    keep: bool
    implementation: str | None  # None: the best of the platform that the program is compiled for


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _swiglu(x_ND, gate_GDF, up_GDF, rows, how: _How):
    """`rows` are the first and end row of every group and, where tokens have slots, these."""
    return _forward(x_ND, gate_GDF, up_GDF, rows, how, keep=False)[0]


def _swiglu_forward(*operands):
    *saved, _ = operands
    h_RF, *kept = _kept_swiglu(*operands)
    return h_RF, (*saved, tuple(kept))


def _swiglu_backward(how, saved, d_h_RF):
    d_rows_RD, d_gate_GDF, d_up_GDF = _slopes(d_h_RF, *saved, how)
    _, _, *slots = saved[3]
    return unpermute(d_rows_RD, *slots) if slots else d_rows_RD, d_gate_GDF, d_up_GDF, None


_swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _kept_swiglu(x_ND, gate_GDF, up_GDF, rows, how: _How):
    """(h_RF, what is kept), the latter as a constant to gradients: `_slopes` sees to its part in them."""
    return _forward(x_ND, gate_GDF, up_GDF, rows, how, how.keep)


def _kept_forward(*operands):
    *saved, _ = operands
    h_RF, *kept = _kept_swiglu(*operands)
    return (h_RF, *kept), (*saved, tuple(kept))


_kept_swiglu.defvjp(_kept_forward, lambda how, saved, d_outputs: _swiglu_backward(how, saved, d_outputs[0]))


def _forward(x_ND, gate_GDF, up_GDF, rows, how, keep: bool):
    start_G, end_G, *slots = rows
    operands = x_ND, _sources(*slots), gate_GDF, up_GDF, start_G, end_G
    static = {"activation": how.activation, "dtype": x_ND.dtype, "keep": keep}
    return implementations.run(IMPLEMENTATIONS, "forward", how.implementation, operands, **static)


def _sources(order_R=None, home_NK=None):
    """The token of every row; None = every row is its own."""
    return None if order_R is None else jnp.minimum(order_R // home_NK.shape[1], len(home_NK) - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _slopes(d_h_RF, x_ND, gate_GDF, up_GDF, rows, kept, how: _How):
    """Gradients in every row and in the matrices."""
    start_G, end_G, *slots = rows
    operands = d_h_RF, x_ND, _sources(*slots), gate_GDF, up_GDF, start_G, end_G, *kept
    static = {"activation": how.activation}
    return implementations.run(IMPLEMENTATIONS, "backward", how.implementation, operands, **static)


def _slopes_forward(*operands):
    *saved, how = operands
    return _slopes(*saved, how), saved


def _slopes_backward(how, saved, cotangents):
    """Second derivatives are those of the pass that is made of grouped products and keeps nothing."""
    *floats, (start_G, end_G, *slots), kept = saved

    def slopes(d_h_RF, x_ND, gate_GDF, up_GDF):
        rest = _sources(*slots), gate_GDF, up_GDF, start_G, end_G
        return composed.backward(d_h_RF, x_ND, *rest, activation=how.activation)

    return *jax.vjp(slopes, *floats)[1](cotangents), None, jax.tree.map(jnp.zeros_like, kept)


_slopes.defvjp(_slopes_forward, _slopes_backward)
