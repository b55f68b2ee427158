"""Loads of the program, and its two ways into cells."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.bench import cells_both_ways, mesh_layer
from moejax.dispatch.load import Load

LOAD = Load(devices=2, tokens=32, slots=1, experts=8, width=4, slices=4)


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_the_fullest_expert_has_its_share(factor):
    """f times 32 / 8 tokens on each of 8 devices."""
    for row_T in mesh_layer.skewed(LOAD, factor, seed=0)[..., 0]:
        count_E = np.bincount(row_T, minlength=8)
        assert count_E[0] == count_E.max() == 4 * factor and count_E.sum() == 32


def test_both_ways_are_the_same():
    """With room for 3 of 4 second choices too; who finds none adds nothing."""
    rng = np.random.default_rng(0)
    expert_NK = jnp.asarray(rng.permuted(np.tile(np.arange(4), (8, 1)), axis=1)[:, :2], jnp.int32)
    x_ND = jnp.asarray(rng.standard_normal((8, 3)), jnp.float32)
    gate_NK = jnp.asarray(rng.random((8, 2)), jnp.float32)
    one, other = (way(x_ND, gate_NK, expert_NK, 4, 3) for way in cells_both_ways.WAYS.values())
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.abs(one).max() > 0
