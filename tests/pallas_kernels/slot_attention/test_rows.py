"""Stretches of neighbouring rows."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.slot_attention.rows import live_rows, stretches, tiles_of


def test_stretches_by_hand():
    """Positions 3 4 5 6 of slot 1 in tiles of three, a jump, another slot at the next position, nobody."""
    slot_N, position_N = jnp.array([1, 1, 1, 1, 1, 2, -1, 2]), jnp.array([3, 4, 5, 6, 8, 9, 10, 11])
    live_N = live_rows(slot_N, position_N, jnp.zeros((3, 6), int), page_size=2)
    assert live_N.tolist() == [True] * 6 + [False, True]
    first_N, count_N = stretches(slot_N, position_N, live_N, most=3)
    assert first_N.tolist() == [0, 0, 0, 3, 4, 5, 6, 7]
    assert count_N.tolist() == [3, 3, 3, 1, 1, 1, 0, 1]
    tiles, count = tiles_of(slot_N, position_N, live_N, most=3)
    assert count == 5
    assert tiles.first_V.tolist() == [0, 3, 4, 5, 7, 0, 0, 0]
    assert tiles.count_V.tolist() == [3, 1, 1, 1, 1, 0, 0, 0]
    assert tiles.slot_V.tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert tiles.position_V.tolist() == [3, 6, 8, 9, 11, 0, 0, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_every_active_row_is_in_one_tile(seed, most):
    rng = np.random.default_rng(seed)
    slot_N = np.sort(rng.integers(-1, 4, 20))
    position_N = np.cumsum(rng.integers(-1, 2, 20) != 0) - 2
    table_QJ = jnp.zeros((3, 4), int)
    live_N = live_rows(jnp.asarray(slot_N), jnp.asarray(position_N), table_QJ, page_size=4)
    tiles, count = tiles_of(jnp.asarray(slot_N), jnp.asarray(position_N), live_N, most)
    rows = [
        (first + i, slot, position + i)
        for first, size, slot, position in zip(*map(np.asarray, tiles), strict=True)
        for i in range(size)
    ]
    expected = [(n, slot_N[n], position_N[n]) for n in np.flatnonzero(live_N)]
    assert rows == expected
    assert tiles.count_V.max() <= most and (np.asarray(tiles.count_V) > 0).sum() == count
