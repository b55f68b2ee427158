"""What the Hopper kernels work on, and in which order: lists made before a kernel starts.

Products of rows: a segment of rows (a group, or rows of nobody, which get zeros) is cut into tiles from its
own first row on, so that no tile has rows of two groups. Outer products: the groups, longest first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BAND = 16  # tiles that share a column of work before the next column begins


class RowTiles(NamedTuple):
    """Tiles of rows T, each with rows of one segment; only the first `count` of them are there."""

    count: jax.Array  # [1]
    first_T: jax.Array
    start_T: jax.Array  # of the tile's segment
    end_T: jax.Array
    group_T: jax.Array  # -1: rows of nobody


def most_tiles(num_rows: int, num_groups: int, rows: int) -> int:
    """The most tiles that `row_tiles` can give: each segment's last one may have a single row."""
    return num_rows // rows + min(num_groups + 2, num_rows)


def row_tiles(start_G, end_G, num_rows: int, rows: int) -> RowTiles:
    """Cut the rows of nobody before the groups, every group, and the rows behind them into tiles."""
    start_S = jnp.concatenate([jnp.zeros_like(start_G[:1]), start_G, end_G[-1:]])
    end_S = jnp.concatenate([start_G[:1], end_G, jnp.full_like(end_G[:1], num_rows)])
    stop_S = jnp.cumsum(-(-(end_S - start_S) // rows), dtype=jnp.int32)
    tile_T = jnp.arange(most_tiles(num_rows, len(start_G), rows), dtype=jnp.int32)
    segment_T = jnp.sum(stop_S[None, :] <= tile_T[:, None], axis=1, dtype=jnp.int32)
    segment_T = jnp.minimum(segment_T, len(start_S) - 1)
    later_T = stop_S[segment_T] - tile_T  # tiles of the segment from this one on
    count_S = -(-(end_S - start_S) // rows)
    first_T = start_S[segment_T] + (count_S[segment_T] - later_T) * rows
    group_T = jnp.where(segment_T <= len(start_G), segment_T - 1, -1)
    return RowTiles(stop_S[-1:], first_T, start_S[segment_T], end_S[segment_T], group_T)


def longest_first(start_G, end_G) -> jax.Array:
    """The groups in falling order of rows: what is left for the end is short."""
    return jnp.argsort(start_G - end_G).astype(jnp.int32)


def in_bands(item, num_tiles, num_columns: int):
    """The (tile, column) of a work item.

    Down a column of at most `BAND` tiles, then down the next, so that the items that run at one time are
    about as many tiles as columns and find what they read in the L2 cache.
    """
    band = lax.div(item, BAND * num_columns)
    height = jnp.minimum(BAND, num_tiles - band * BAND)
    within = item - band * (BAND * num_columns)
    return band * BAND + lax.rem(within, height), lax.div(within, height)
