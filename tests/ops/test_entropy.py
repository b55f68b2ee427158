"""The entropy by hand, at its limits, and its slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.ops.entropy import check_index, tsallis

FIVE = np.array(
    [
        [0.60, 0.25, 0.05, 0.04, 0.03, 0.03],
        [0.30, 0.25, 0.15, 0.12, 0.10, 0.08],
        [1 / 6] * 6,
        [0.90, 0.04, 0.02, 0.02, 0.01, 0.01],
        [0.50, 0.20, 0.20, 0.05, 0.03, 0.02],
    ]
)


@pytest.mark.parametrize(
    ("q", "eps", "want"),
    [
        (1.1, 1e-5, [0.633311, 0.936397, 0.999664, 0.248261, 0.738759]),
        (1.1, 0.0, [0.633626, 0.936730, 1.0, 0.248551, 0.739078]),
        (2.0, 0.0, [0.68592]),  # 6/5 of 1 - sum p^2 = 0.5716
    ],
)
def test_six_outcomes_by_hand(q, eps, want):
    with jax.enable_x64(True):
        got = np.asarray(tsallis(jnp.asarray(FIVE[: len(want)]), q, eps))
    np.testing.assert_allclose(got, want, atol=6e-7)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.1, 2.0])
def test_uniform_is_one_and_certain_is_zero(q):
    eps = 1e-12 if q < 1 else 0.0
    with jax.enable_x64(True):
        got = np.asarray(tsallis(jnp.asarray([[0.25] * 4, [0.0, 1.0, 0.0, 0.0]]), q, eps))
    np.testing.assert_allclose(got, [1, 0], atol=1e-5)
    assert tsallis(jnp.ones((2, 3, 1))).shape == (2, 3)


def test_it_is_continuous_at_one_without_eps():
    with jax.enable_x64(True):
        near, at = (float(tsallis(jnp.asarray(FIVE[0]), q, 0.0)) for q in (1.0001, 1.0))
    assert abs(near - at) == pytest.approx(5.3e-6, rel=0.02)


@pytest.mark.parametrize("q", [1.0, 1.1, 2.0])
def test_the_slope_is_the_finite_difference(q):
    rng = np.random.default_rng(0)
    p_NE, way_NE = rng.dirichlet(np.ones(5), 20) + 1e-3, rng.standard_normal((20, 5))
    with jax.enable_x64(True):
        slope_N = np.sum(jax.grad(lambda p_NE: jnp.sum(tsallis(p_NE, q)))(p_NE) * way_NE, axis=-1)
        high_N, low_N = (np.asarray(tsallis(p_NE + h * way_NE, q)) for h in (1e-6, -1e-6))
    np.testing.assert_allclose((high_N - low_N) / 2e-6, slope_N, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("q", [1.0, 1.1, 2.0])
def test_the_slope_is_finite_at_certainty(q):
    assert np.isfinite(jax.grad(lambda p: tsallis(p, q))(jnp.array([1.0, 0.0, 0.0]))).all()


def test_what_has_no_useful_value_is_refused():
    for q, eps in ((1.001, 1e-5), (0.5, 0.0), (0.0, 1e-5)):
        with pytest.raises(UsageError, match=f"q={q}"):
            check_index(q, eps)
    for q, eps in ((1.0, 1e-5), (1.1, 1e-5), (1.001, 0.0), (0.5, 1e-5)):
        check_index(q, eps)
