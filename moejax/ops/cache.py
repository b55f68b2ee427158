"""Rows of what decoding remembers, by slot and position.

A slot holds one document, written from position 0 without gaps, so "not later than the query" also means
"written".
"""

import jax.numpy as jnp

from moejax import sharding
from pallas_kernels import write_page


def length(old_BS, batch) -> int:
    """Positions that a slot of the cache can have."""
    return old_BS.shape[1] if batch.flat is None else batch.flat.length


def write(old_BS, new_BT, batch, letters: str):
    """`old_BS` [B, S, ...] with the rows of `batch` at their positions; absent tokens are not written.

    For flat rows the cache has pages [P, G, S, A], and what has no heads is kept as of one.

    Args:
      letters: dims of the result, as in `sharding.out`.
    """
    if batch.flat is not None:
        new_JGA = new_BT.reshape(new_BT.shape[1], *old_BS.shape[1::2])
        return write_page(old_BS, new_JGA, slot_of(batch)[0], batch.pos_BT[0], batch.flat.page_QP)
    B, S = old_BS.shape[:2]
    to_BT = jnp.where(batch.valid_BT, batch.pos_BT, S)  # position S does not exist: dropped
    row_B1 = jnp.arange(B, dtype=to_BT.dtype)[:, None]
    return old_BS.at[row_B1, to_BT].set(new_BT, mode="drop", out_sharding=sharding.out(letters))


def slot_of(batch):
    """i32[B, T]: the slot of each flat token that is there; -1 for the others."""
    return jnp.where(batch.valid_BT, batch.flat.slot_BT, -1)
