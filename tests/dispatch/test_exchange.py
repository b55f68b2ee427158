"""Slots in cells by hand (the worked example of Tutel), and an all-to-all in two levels."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax.dispatch.exchange import all_to_all, capacity, in_cells
from tests.contracts import tiny

# Six tokens, three experts, two choices each.
EXPERT_NK = np.array([[0, 1], [0, 1], [0, 2], [1, 0], [0, 2], [2, 0]], np.int32)
PLACE_NK = np.array([[0, 1], [1, 2], [2, 1], [0, 4], [3, 2], [0, 5]])  # among the rows of its expert
CELLS = jax.jit(in_cells, static_argnums=(1, 2))


@pytest.mark.parametrize(("factor", "slots"), [(1.0, 4), (1.25, 4), (1.5, 6), (0.1, 1), (9.0, 6), (None, 6)])
def test_capacity_by_hand(factor, slots):
    """Two tokens per expert: k int(2 f), at least one and at most all six."""
    assert capacity(factor, 6, 2, 3) == slots


def test_places_are_in_choice_major_order():
    """First choices come first; with four slots expert 0 drops the second choices of tokens 3 and 5."""
    order_R, home_NK, size_E = CELLS(EXPERT_NK, 3, 4)
    dropped = [(3, 1), (5, 1)]
    kept_NK = np.array([[(n, k) not in dropped for k in range(2)] for n in range(6)])
    np.testing.assert_array_equal(home_NK, np.where(kept_NK, EXPERT_NK * 4 + PLACE_NK, 12))
    np.testing.assert_array_equal(size_E, [4, 3, 3])
    np.testing.assert_array_equal(order_R, [0, 2, 4, 8, 6, 1, 3, 12, 10, 5, 9, 12])


def test_empty_slots_have_no_place():
    order_R, home_NK, size_E = CELLS(np.array([[2, 0], [2, 2]]), 2, 1)
    np.testing.assert_array_equal(home_NK, [[2, 0], [2, 2]])
    np.testing.assert_array_equal(order_R, [1, 4])
    np.testing.assert_array_equal(size_E, [1, 0])


@pytest.mark.parametrize("node_size", [1, 2, 4, 8])
def test_two_levels_equal_one(node_size):
    """Block q of device p goes to device q, whether nodes have 1, 2, 4 or all 8 devices."""
    mesh = jax.make_mesh((8,), ("expert",), (jax.sharding.AxisType.Auto,))
    swap = functools.partial(all_to_all, axes="expert", node_size=node_size)
    mapped = jax.shard_map(swap, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=True)
    x = np.arange(8 * 8 * 3).reshape(64, 3)
    got = jax.jit(mapped, compiler_options=tiny.QUICK_COMPILE)(x)
    np.testing.assert_array_equal(got, x.reshape(8, 8, 3).swapaxes(0, 1).reshape(64, 3))
