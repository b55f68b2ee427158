"""The dense layer by hand and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import MeshConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from tests.contracts import oracles, tiny


def test_one_token_by_hand():
    """x = 2, gate 1, up 3, down 5: silu(2) * 6 * 5."""
    p = {name: jnp.full((1, 1), value) for name, value in (("gate", 1.0), ("up", 3.0), ("down", 5.0))}
    i = tiny.route_in(np.full((1, 1, 1), 2.0, np.float32), tiny.document([[0]]))
    y_BTD, routing, _ = Dense(1).apply(p, i)
    np.testing.assert_allclose(y_BTD, [[[2 / (1 + np.exp(-2)) * 30]]], rtol=1e-6)
    assert routing is None


def test_equals_float64():
    m = tiny.float64(tiny.model())
    with jax.enable_x64(True):
        p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), Dense(6).specs(m)))
        x_BTD = np.random.default_rng(0).standard_normal((2, 3, m.width))
        y_BTD = Dense(6).apply(p, tiny.route_in(x_BTD, tiny.document(np.zeros((2, 3)))))[0]
    np.testing.assert_allclose(y_BTD, oracles.glu(p, x_BTD), rtol=1e-10)


def test_biases_and_a_linear_gate_by_hand():
    """x = 2, matrices 1, 3, 7, 5, biases .5, -1, 1, 4: silu(2.5) * 5 * 15 * 5 + 4."""
    matrices = {"gate": 1.0, "up": 3.0, "linear_gate": 7.0, "down": 5.0}
    biases = {"gate_bias": 0.5, "up_bias": -1.0, "linear_gate_bias": 1.0, "down_bias": 4.0}
    p = {name: jnp.full((1, 1), value) for name, value in matrices.items()}
    p |= {name: jnp.full((1,), value) for name, value in biases.items()}
    dense = Dense(1, bias=True, linear_gate=True)
    assert dense.specs(tiny.model(width=1)).keys() == p.keys()
    i = tiny.route_in(np.full((1, 1, 1), 2.0, np.float32), tiny.document([[0]]))
    np.testing.assert_allclose(dense.apply(p, i)[0], [[[2.5 / (1 + np.exp(-2.5)) * 375 + 4]]], rtol=1e-6)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(UsageError, match=r"ffn.hidden=6 is not divisible by mesh.tensor=4"):
        Dense(6).check_mesh(MeshConfig(tensor=4))
    with pytest.raises(UsageError, match=r"ffn.hidden=0 must be at least 1"):
        Dense(0)
