"""The two verbs: a stored parameter takes the dtype of the activations and, on a mesh, the layout for use."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding, weights
from tests.contracts import tiny


def test_einsum_by_hand():
    y_BTF = weights.einsum("BTD,DF->BTF", jnp.array([[[1.0, 2.0]]]), jnp.array([[3.0], [5.0]]))
    np.testing.assert_array_equal(y_BTF, [[[13.0]]])


def test_grouped_by_hand():
    """Two rows times 2, one times 3, the last row belongs to nobody."""
    w_EDF = jnp.array([[[2.0]], [[3.0]]])
    rows_RF = weights.grouped(jnp.array([[1.0], [2.0], [3.0], [9.0]]), w_EDF, jnp.array([2, 1]))
    np.testing.assert_array_equal(rows_RF[:, 0], [2, 4, 9, 0])


def test_activations_decide_the_dtype():
    half = lambda *shape: jnp.ones(shape, jnp.bfloat16)
    assert weights.einsum("BTD,DF->BTF", half(1, 1, 2), jnp.ones((2, 3))).dtype == jnp.bfloat16
    assert weights.grouped(half(2, 2), jnp.ones((1, 2, 3)), jnp.array([2])).dtype == jnp.bfloat16


def test_a_mesh_changes_the_layout_and_not_the_product():
    rng = np.random.default_rng(0)
    x_BTD, w_DF = rng.standard_normal((4, 2, 4)), rng.standard_normal((4, 6))
    with jax.enable_x64(True), tiny.on_mesh(data=2, fsdp=2, tensor=2) as mesh:
        w = jax.device_put(w_DF, jax.NamedSharding(mesh, sharding.stored(("embed", "ffn"))))
        y_BTF = jax.jit(lambda x, w: weights.einsum("BTD,DF->BTF", x, w))(sharding.place_rows(x_BTD, mesh), w)
        assert y_BTF.sharding.spec == sharding.out("BTF")
        tiny.close(y_BTF, x_BTD @ w_DF, 1e-14)
