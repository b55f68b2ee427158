"""Grouped-query attention by hand; what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.attention.gqa import Gqa
from moejax.config import MeshConfig
from moejax.errors import UsageError
from moejax.seams import Memory
from tests.contracts import tiny


def test_flat_queries_average_what_came_before():
    """Queries of zero: every token gets the mean of the values so far; values and output are the identity."""
    eye = jnp.eye(2)
    p = {"q": jnp.zeros((2, 1, 2)), "k": eye[:, None], "v": eye[:, None], "o": eye[None]}
    x_BTD = jnp.array([[[2.0, 0.0], [4.0, 6.0], [0.0, 0.0]]])
    o_BTD, mixing, memory = Gqa(1, 1, 2).apply(p, x_BTD, tiny.document([[0, 0, 0]]), Memory({}, {}))
    np.testing.assert_allclose(o_BTD, [[[2, 0], [3, 3], [2, 2]]], rtol=1e-6)
    assert mixing.q_BTHA.shape == mixing.k_BSGA.shape == (1, 3, 1, 2)
    assert memory == Memory({}, {})


def test_cache_and_parameters_are_declared():
    """Keys and values of G heads; parameters 2 D A (H + G)."""
    gqa, m = Gqa(num_heads=4, num_kv_heads=2, head_width=4), tiny.model()
    assert gqa.cache(m, 3, 5)["k"].shape == gqa.cache(m, 3, 5)["v"].shape == (3, 5, 2, 4)
    sizes = [np.prod(spec.shape) for spec in gqa.specs(m).values()]
    assert sum(sizes) == 2 * m.width * 4 * (4 + 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of attn.num_kv_heads=3"),
        ({"head_width": 5}, "head_width=5 must be even"),
        ({"window": 0}, "window=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Gqa(**{"num_heads": 4, "num_kv_heads": 2, "head_width": 4, **change})


def test_a_mesh_that_cannot_split_the_heads_is_refused():
    with pytest.raises(UsageError, match=r"num_kv_heads=2 is not divisible by mesh.tensor=4"):
        Gqa(4, 2, 4).check_mesh(MeshConfig(tensor=4))
