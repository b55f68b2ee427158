"""Rotary positions by hand, against complex numbers, and the property that they are made for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moejax.ops.rope import Rotation, rotate
from tests.contracts import oracles


def turned(x_A, pos, theta):
    """One head of one position, in f64."""
    turn = Rotation(theta, len(x_A)).sin_cos(jnp.array([[pos]]), dtype=jnp.float64)
    return np.ravel(rotate(jnp.asarray(x_A)[None, None, None], turn))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_quarter_turn_by_hand(self):
        """Theta pi^2/4: a position turns the first pair by 1 radian, the second by 2/pi; 0 turns nothing."""
        x_BTHA = jnp.array([[[[1.0, 0.0, 0.0, 1.0]]]])
        turn = self.variant(lambda x, pos: rotate(x, Rotation(np.pi**2 / 4, 4).sin_cos(pos)))
        np.testing.assert_array_equal(turn(x_BTHA, jnp.array([[0]])), x_BTHA)
        angle = 2 / np.pi * 3
        want = [np.cos(3), -np.sin(angle), np.sin(3), np.cos(angle)]
        np.testing.assert_allclose(turn(x_BTHA, jnp.array([[3]]))[0, 0, 0], want, rtol=1e-5)


@given(st.integers(0, 5000), st.integers(0, 1000))
def test_equals_complex_numbers(pos, seed):
    x_A = np.random.default_rng(seed).standard_normal(8)
    with jax.enable_x64(True):
        got_A = turned(x_A, pos, 10_000.0)
    np.testing.assert_allclose(got_A, oracles.rotate(x_A, pos, 10_000.0), rtol=1e-9, atol=1e-12)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_products_depend_on_the_distance_only(q_pos, k_pos, shift):
    rng = np.random.default_rng(1)
    q_A, k_A = rng.standard_normal((2, 8))
    with jax.enable_x64(True):
        here = turned(q_A, q_pos, 100.0) @ turned(k_A, k_pos, 100.0)
        there = turned(q_A, q_pos + shift, 100.0) @ turned(k_A, k_pos + shift, 100.0)
    np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-9)
