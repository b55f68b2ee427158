"""The op in one loop over chunks of rows: what a chunk needs stays in cache from its tokens to its result.

The chunks are those of `grouped_matmul.cpu`, which says why. Against separate loops for the three products
there is no copy of the rows in their order and none of the gated rows; the backward pass reads a chunk once,
makes the gated rows again out of the two products, and never has the products' gradients in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.cpu import for_each_chunk
from pallas_kernels.grouped_matmul.reference import accumulator
from pallas_kernels.grouped_swiglu.activations import gated
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def forward(x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *, activation, keep):
    """See `reference.forward`."""
    num_rows, dtype = len(x_ND if source_R is None else source_R), x_ND.dtype

    def update(out, group, at, inside_R1, first):
        del first  # every row is written once
        rows_RD = _rows(x_ND, source_R, at, inside_R1)
        pair_RF = _pair(rows_RD, gate_GDF[group], up_GDF[group])
        y_RD = _product(gated(*pair_RF, activation, dtype), down_GFD[group]).astype(dtype)
        found = y_RD, *(pair_RF if keep else ())
        return tuple(_write(old, new, at, inside_R1) for old, new in zip(out, found, strict=True))

    widths = x_ND.shape[1], *((gate_GDF.shape[2],) * 2 if keep else ())
    out = tuple(vary(jnp.zeros((num_rows, wide), dtype), varying_axes(x_ND)) for wide in widths)
    return for_each_chunk(update, out, num_rows, start_G, end_G)


def backward(d_y_RD, x_ND, source_R, gate_GDF, up_GDF, down_GFD, start_G, end_G, *kept, activation):
    """See `reference.backward`."""
    num_rows, dtype, accum = len(d_y_RD), x_ND.dtype, accumulator(x_ND)
    gate_up = functools.partial(gated, activation=activation, dtype=dtype)

    def update(out, group, at, inside_R1, first):
        d_rows_RD, *d_weights = out
        rows_RD = _keep(_rows(x_ND, source_R, at, inside_R1), inside_R1)
        d_chunk_RD = _keep(_slice(d_y_RD, at, inside_R1), inside_R1)
        gate_DF, up_DF, down_FD = (w_GAB[group] for w_GAB in (gate_GDF, up_GDF, down_GFD))
        if kept:
            pair_RF = [_keep(_slice(kept_RF, at, inside_R1), inside_R1) for kept_RF in kept]
        else:
            pair_RF = _pair(rows_RD, gate_DF, up_DF)
        h_RF, pull = jax.vjp(gate_up, *pair_RF)
        d_gate_RF, d_up_RF = pull(_product(d_chunk_RD, down_FD.T).astype(dtype))
        new_RD = _product(d_gate_RF, gate_DF.T) + _product(d_up_RF, up_DF.T)
        news = _product(rows_RD.T, d_gate_RF), _product(rows_RD.T, d_up_RF), _product(h_RF.T, d_chunk_RD)
        if not first:
            news = [new + d_GAB[group] for new, d_GAB in zip(news, d_weights, strict=True)]
        d_weights = [
            lax.dynamic_update_index_in_dim(d_GAB, new, group, 0)
            for d_GAB, new in zip(d_weights, news, strict=True)
        ]
        return _write(d_rows_RD, new_RD.astype(dtype), at, inside_R1), *d_weights

    zeros = [jnp.zeros((num_rows, x_ND.shape[1]), dtype)]
    zeros += [jnp.zeros(w_GAB.shape, accum) for w_GAB in (gate_GDF, up_GDF, down_GFD)]
    out = tuple(vary(zero, varying_axes(x_ND)) for zero in zeros)
    d_rows_RD, *d_weights = for_each_chunk(update, out, num_rows, start_G, end_G)
    return d_rows_RD, *(d_GAB.astype(dtype) for d_GAB in d_weights)


def _pair(rows_RD, gate_DF, up_DF):
    return [_product(rows_RD, w_DF).astype(rows_RD.dtype) for w_DF in (gate_DF, up_DF)]


def _product(left, right):
    return jnp.matmul(left, right, preferred_element_type=accumulator(left))


def _rows(x_ND, source_R, at, inside_R1):
    """The tokens of a chunk's rows."""
    if source_R is None:
        return _slice(x_ND, at, inside_R1)
    return x_ND.at[_slice(source_R, at, inside_R1)].get(mode="clip")


def _slice(x_RF, at, inside_R1):
    return lax.dynamic_slice_in_dim(x_RF, at, len(inside_R1))


def _keep(x_RF, inside_R1):
    """Rows of other groups are zero: they may hold NaN."""
    return jnp.where(inside_R1, x_RF, jnp.zeros_like(x_RF))


def _write(out_RF, new_RF, at, inside_R1):
    new_RF = jnp.where(inside_R1, new_RF, _slice(out_RF, at, inside_R1))
    return lax.dynamic_update_slice_in_dim(out_RF, new_RF, at, 0)
