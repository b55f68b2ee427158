"""Weights kept in blocks of integers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs, weights
from moejax.errors import CheckpointError
from moejax.quantised import Quantised
from moejax.specs import Normal, Spec


def test_eight_bits_by_hand():
    """Two blocks of one row: 0..31 times 0.5, and -32..-1 times 2."""
    w = Quantised(jnp.arange(-32, 32, dtype=jnp.int8)[None], jnp.array([[2, 0.5]], jnp.float16))
    assert w.shape == (1, 64)
    wanted = np.concatenate([np.arange(-32, 0) * 2.0, np.arange(32) * 0.5])
    np.testing.assert_array_equal(w.astype(jnp.float32)[0], wanted)


def test_four_bits_by_hand():
    """Byte i holds number i below and number i + 16 above it; blocks lie along the first dim."""
    low, high = np.arange(16), np.arange(15, -1, -1)
    code = jnp.array(low | high << 4, jnp.uint8)[:, None]
    half = lambda x: jnp.full((1, 1), x, jnp.float16)
    numbers = np.concatenate([low, high])
    w = Quantised(code, half(2), half(-1), dim=-2)
    assert w.shape == (32, 1)
    np.testing.assert_array_equal(w.astype(jnp.float32)[:, 0], numbers * 2 - 1)
    np.testing.assert_array_equal(
        Quantised(code, half(2), dim=-2, zero=8).astype(jnp.float32)[:, 0], (numbers - 8) * 2
    )


@pytest.fixture
def table():
    """[6, 64] in 4 bits, and the same as an array."""
    rng = np.random.default_rng(0)
    scale, low = (jnp.asarray(rng.normal(size=(6, 2)), jnp.float16) for _ in range(2))
    kept = Quantised(jnp.asarray(rng.integers(0, 256, (6, 32), np.uint8)), scale, low)
    return kept, kept.astype(jnp.float32)


def test_the_verbs_take_it_for_an_array(table, monkeypatch):
    kept, array = table
    x_BTD = jax.random.normal(jax.random.key(0), (2, 3, 64))
    monkeypatch.setattr(weights, "CHUNK", 2 * 64)  # a part of the table has two rows
    for verb in (
        lambda w: weights.einsum("BTD,VD->BTV", x_BTD, w),
        lambda w: weights.table_product(x_BTD, weights.table(w, jnp.float32)),
        lambda w: weights.rows(w, jnp.array([[5, 0, 2]])),
    ):
        np.testing.assert_allclose(verb(kept), verb(array), rtol=1e-5, atol=1e-5)


def test_layers_of_it_are_scanned(table):
    kept, array = table
    stacked = jax.tree.map(lambda part: jnp.stack([part, part[::-1]]), kept)
    _, found = jax.lax.scan(lambda carry, w: (carry, w.astype(jnp.float32)), 0, stacked)
    np.testing.assert_array_equal(found, jnp.stack([array, array[::-1]]))


def test_a_check_names_it(table):
    spec = Spec((6, 64), (None, None), Normal(1.0))
    with pytest.raises(CheckpointError, match=r"\['w'\] is kept in few bits; .* without keep_quantised"):
        specs.check({"w": table[0]}, {"w": spec})
    with pytest.raises(CheckpointError, match=r"params\['w'\] is \(6, 64\), the config asks for \(6, 32\)"):
        specs.check({"w": table[0]}, {"w": Spec((6, 32), (None, None), Normal(1.0))})
