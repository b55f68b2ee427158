"""The verbs through which a layer touches a weight.

Layers never call `jnp.einsum` on a parameter: here the stored layout becomes the used one and the
parameter takes the activations' dtype, at one visible line.
"""

import functools
import math
import re
import string

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.config import require
from moejax.quantised import Bfloat16, Int8, Quantised, is_quantised
from pallas_kernels import (
    grouped_matmul,
    grouped_mlp,
    quantize_rows,
    quantized_grouped_matmul,
    quantized_matmul,
)
from pallas_kernels.grouped_swiglu.activations import gated

CHUNK = 1 << 23  # numbers of a quantised table that are in memory at once


def einsum(eq: str, x, w):
    """`jnp.einsum(eq, x, w)` with a stored parameter `w`; letters as in `moejax.dims` decide the layout.

    With a weight of 8 bits the product is one of integers, if what is summed over are the last dims of `x`
    and those of the weight's channels; with one of 16 bits numbers of 16 bits are summed in 32.
    """
    if isinstance(w, Int8):
        return _of_integers(eq, x, w)
    if isinstance(w, Bfloat16):
        return _of_16_bits(_in_order(eq), x, w)
    out_sharding = sharding.out(eq.split("->")[1])
    return jnp.einsum(_in_order(eq), x, sharding.gather(w).astype(x.dtype), out_sharding=out_sharding)


def _of_integers(eq: str, x, w: Int8):
    """Rows of x, rounded to 8 bits as well, times the channels."""
    of_x, of_w, out = re.split(",|->", eq)
    summed = "".join(of_w[dim] for dim in w.dims)
    rows, channels = of_x.removesuffix(summed), of_w.removeprefix(summed)
    require(
        len(rows) < len(of_x) and len(channels) < len(of_w) and out == rows + channels,
        f"a weight of 8 bits whose channels sum over {summed} cannot be used as in {eq}; keep it in floats",
    )
    y_MN = quantized_matmul(
        x.reshape(-1, math.prod(x.shape[len(rows) :])),
        w.code.reshape(math.prod(w.shape[: len(summed)]), -1),
        w.scale.reshape(-1),
    )
    return y_MN.reshape(*x.shape[: len(rows)], *w.shape[len(summed) :])


def _of_16_bits(eq: str, x, w: Bfloat16):
    """Rows [B, T, ...] of x, rounded to 16 bits as well, times the weight; no sum is rounded on the way."""
    B, T = x.shape[:2]
    if B * T == 1:  # which XLA's CPU would take through a loop over single numbers
        x = jnp.concatenate([x, x], axis=1)
    y = jnp.einsum(eq, x.astype(jnp.bfloat16), w.number, preferred_element_type=jnp.float32)
    return y[:, :T].astype(x.dtype)


@functools.cache
def _in_order(eq: str) -> str:
    """`eq` in rising letters: einsum sums in the order of the alphabet, and on CPU any other is a copy."""
    rising = dict(zip(dict.fromkeys(filter(str.isalpha, eq)), string.ascii_letters, strict=False))
    return "".join(rising.get(letter, letter) for letter in eq)


def biased(x, b):
    """`x` plus a stored parameter `b` over its last dims."""
    return x + jnp.expand_dims(sharding.gather(b).astype(x.dtype), range(x.ndim - b.ndim))


def rows(table_VD, index_BT):
    """Rows [B, T, D] of a stored table, in the dtype in which it is kept."""
    if isinstance(table_VD, Quantised):
        return table_VD.map_parts(lambda part: part[index_BT]).astype(jnp.float32)
    if isinstance(table_VD, Int8):
        return table_VD.code[index_BT].astype(jnp.float32) * table_VD.scale[index_BT][..., None]
    if isinstance(table_VD, Bfloat16):
        return table_VD.number[index_BT].astype(jnp.float32)
    return sharding.whole(table_VD).at[index_BT].get(out_sharding=sharding.out("BTD"))


def table(table_VD, dtype):
    """A stored table, ready for `table_product`."""
    return table_VD if is_quantised(table_VD) else sharding.gather(table_VD).astype(dtype)


def table_product(x_BTD, table_VD):
    """`x_BTD` times every row of a table from `table`; a quantised one becomes numbers part by part."""
    if isinstance(table_VD, Int8):
        x_MD = x_BTD.reshape(-1, x_BTD.shape[2])
        y_MV = quantized_matmul(x_MD, table_VD.code, table_VD.scale, transpose_rhs=True)
        return y_MV.reshape(*x_BTD.shape[:2], -1)
    if isinstance(table_VD, Bfloat16):
        return _of_16_bits("BTD,VD->BTV", x_BTD, table_VD)
    if not isinstance(table_VD, Quantised):
        return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, out_sharding=sharding.out("BTV"))
    V, D = table_VD.shape
    count = next(n for n in range(max(1, V * D // CHUNK), V + 1) if V % n == 0)
    parts = table_VD.map_parts(lambda part: part.reshape(count, V // count, -1))
    y_NBTV = jax.lax.map(lambda part_VD: jnp.einsum("BTD,VD->BTV", x_BTD, part_VD.astype(x_BTD.dtype)), parts)
    return jnp.moveaxis(y_NBTV, 0, 2).reshape(*x_BTD.shape[:2], V)


def grouped(rows_RD, w_EDF, size_E):
    """Each group of rows times its expert's matrix; rows past the last group come out zero."""
    if isinstance(w_EDF, Int8):
        return quantized_grouped_matmul(rows_RD, w_EDF.code, size_E, w_EDF.scale)
    if isinstance(w_EDF, Bfloat16):
        short_RD = rows_RD.astype(jnp.bfloat16)
        y_RF = grouped_matmul(short_RD, w_EDF.number, size_E, preferred_element_type=jnp.float32)
        return y_RF.astype(rows_RD.dtype)
    return grouped_matmul(rows_RD, w_EDF.astype(rows_RD.dtype), size_E)


def gated_mlp(rows_RD, gate_EDF, up_EDF, down_EFD, size_E, activation: str):
    """Each group of rows through its expert's gated network; rows past the last group come out zero."""
    if isinstance(down_EFD, Int8 | Bfloat16):
        gate_RF, up_RF = (grouped(rows_RD, w_EDF, size_E) for w_EDF in (gate_EDF, up_EDF))
        return grouped(gated(gate_RF, up_RF, activation, rows_RD.dtype), down_EFD, size_E)
    used = (w.astype(rows_RD.dtype) for w in (gate_EDF, up_EDF, down_EFD))
    return grouped_mlp(rows_RD, *used, size_E, activation=activation)


@functools.partial(jax.jit, static_argnames="dims")
def to_int8(w, dims: tuple[int, ...]) -> Int8:
    """Round every channel to 255 equal steps around zero."""
    last = tuple(range(-len(dims), 0))
    channels = jnp.moveaxis(w, dims, last)
    codes, scale = quantize_rows(channels.reshape(*channels.shape[: -len(dims)], -1))
    return Int8(jnp.moveaxis(codes.reshape(channels.shape), last, dims), scale, dims)
