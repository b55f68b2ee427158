"""Rows of what decoding remembers, by slot and position.

A slot holds one document, written from position 0 without gaps, so "not later than the query" also means
"written".
"""

import jax.numpy as jnp

from moejax import sharding


def write(old_BS, new_BT, batch, letters: str):
    """`old_BS` [B, S, ...] with the rows of `batch` at their positions; absent tokens are not written.

    Args:
      letters: dims of the result, as in `sharding.out`.
    """
    B, S = old_BS.shape[:2]
    to_BT = jnp.where(batch.valid_BT, batch.pos_BT, S)  # position S does not exist: dropped
    row_B1 = jnp.arange(B, dtype=to_BT.dtype)[:, None]
    return old_BS.at[row_B1, to_BT].set(new_BT, mode="drop", out_sharding=sharding.out(letters))
