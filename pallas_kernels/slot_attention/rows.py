"""What flat rows have in common: neighbours at consecutive positions of one slot see almost the same keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Tiles(NamedTuple):
    """Stretches of neighbouring rows at consecutive positions of one slot."""

    first_V: jax.Array  # row
    count_V: jax.Array  # rows; none in the spare tiles at the end
    slot_V: jax.Array
    position_V: jax.Array  # of the first row


def live_rows(slot_N, position_N, page_table_QJ, page_size: int):
    """Which rows are in the page table."""
    num_slots, slot_pages = page_table_QJ.shape
    in_slot_N = (position_N >= 0) & (position_N < slot_pages * page_size)
    return (slot_N >= 0) & (slot_N < num_slots) & in_slot_N


def stretches(slot_N, position_N, live_N, most: int):
    """The stretch of at most `most` rows that each row is in.

    Returns:
      (its first row, how many rows it has) of every row; an inactive row is alone, with none.
    """
    row_N = jnp.arange(slot_N.shape[0], dtype=jnp.int32)
    follows_N = (slot_N[1:] == slot_N[:-1]) & (position_N[1:] == position_N[:-1] + 1)
    joins_N = jnp.pad(follows_N & live_N[1:] & live_N[:-1], (1, 0))
    run_N = lax.cummax(jnp.where(joins_N, 0, row_N))
    first_N = row_N - (row_N - run_N) % most
    next_N = jnp.pad(jnp.where(first_N == row_N, row_N, len(row_N))[1:], (0, 1), constant_values=len(row_N))
    end_N = lax.cummin(next_N, reverse=True)
    return first_N, jnp.where(live_N, end_N - first_N, 0)


def tiles_of(slot_N, position_N, live_N, most: int) -> tuple[Tiles, jax.Array]:
    """All stretches in the order of the rows, and how many there are."""
    first_N, count_N = stretches(slot_N, position_N, live_N, most)
    row_N = jnp.arange(len(first_N), dtype=jnp.int32)
    leads_N = live_N & (first_N == row_N)
    order_V = jnp.argsort(~leads_N, stable=True)
    real_V = leads_N[order_V]
    take = lambda x_N: jnp.where(real_V, x_N[order_V], 0).astype(jnp.int32)
    return Tiles(take(row_N), take(count_N), take(slot_N), take(position_N)), jnp.sum(leads_N)
