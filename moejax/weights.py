"""The verbs through which a layer touches a weight.

Layers never call `jnp.einsum` on a parameter: here the stored layout becomes the used one and the
parameter takes the activations' dtype, at one visible line.
"""

import functools
import string

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.quantised import Quantised
from pallas_kernels import grouped_matmul, grouped_mlp

CHUNK = 1 << 23  # numbers of a quantised table that are in memory at once


def einsum(eq: str, x, w):
    """`jnp.einsum(eq, x, w)` with a stored parameter `w`; letters as in `moejax.dims` decide the layout."""
    out_sharding = sharding.out(eq.split("->")[1])
    return jnp.einsum(_in_order(eq), x, sharding.gather(w).astype(x.dtype), out_sharding=out_sharding)


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
    return sharding.whole(table_VD).at[index_BT].get(out_sharding=sharding.out("BTD"))


def table(table_VD, dtype):
    """A stored table, ready for `table_product`."""
    return table_VD if isinstance(table_VD, Quantised) else sharding.gather(table_VD).astype(dtype)


def table_product(x_BTD, table_VD):
    """`x_BTD` times every row of a table from `table`; a quantised one becomes numbers part by part."""
    if not isinstance(table_VD, Quantised):
        return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, out_sharding=sharding.out("BTV"))
    V, D = table_VD.shape
    count = next(n for n in range(max(1, V * D // CHUNK), V + 1) if V % n == 0)
    parts = table_VD.map_parts(lambda part: part.reshape(count, V // count, -1))
    y_NBTV = jax.lax.map(lambda part_VD: jnp.einsum("BTD,VD->BTV", x_BTD, part_VD.astype(x_BTD.dtype)), parts)
    return jnp.moveaxis(y_NBTV, 0, 2).reshape(*x_BTD.shape[:2], V)


def grouped(rows_RD, w_EDF, size_E):
    """Each group of rows times its expert's matrix; rows past the last group come out zero."""
    return grouped_matmul(rows_RD, w_EDF.astype(rows_RD.dtype), size_E)


def gated_mlp(rows_RD, gate_EDF, up_EDF, down_EFD, size_E, activation: str):
    """Each group of rows through its expert's gated network; rows past the last group come out zero."""
    used = (w.astype(rows_RD.dtype) for w in (gate_EDF, up_EDF, down_EFD))
    return grouped_mlp(rows_RD, *used, size_E, activation=activation)
