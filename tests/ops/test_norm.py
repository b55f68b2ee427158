"""The norms by hand and in every dtype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs
from moejax.errors import UsageError
from moejax.ops import norm
from moejax.ops.norm import rms_norm, to_sum_one
from tests.contracts import oracles, tiny


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_three_and_four_by_hand(self):
        """Mean square of (3, 4) is 12.5."""
        norm = self.variant(rms_norm, static_argnums=2)
        got_D = norm(jnp.array([[[3.0, 4.0]]]), jnp.array([1.0, 2.0]), 0.0)[0, 0]
        np.testing.assert_allclose(got_D, np.array([3, 8]) / np.sqrt(12.5), rtol=1e-6)


def test_equals_float64_and_keeps_the_dtype():
    rng = np.random.default_rng(0)
    x_BTD, scale_D = (
        rng.standard_normal((2, 3, 8)).astype(np.float32),
        rng.standard_normal(8).astype(np.float32),
    )
    want_BTD = np.apply_along_axis(oracles.rms_norm, -1, x_BTD.astype(np.float64), scale_D, 1e-6)
    np.testing.assert_allclose(rms_norm(x_BTD, scale_D, 1e-6), want_BTD, rtol=1e-5)
    half_BTD = rms_norm(jnp.asarray(x_BTD, jnp.bfloat16), scale_D, 1e-6)
    assert half_BTD.dtype == jnp.bfloat16
    np.testing.assert_allclose(half_BTD.astype(np.float32), want_BTD, rtol=0.02, atol=0.02)


def test_zeros_stay_zero():
    np.testing.assert_array_equal(rms_norm(jnp.zeros((1, 1, 4)), jnp.ones(4), 1e-6), jnp.zeros((1, 1, 4)))


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e-37])
def test_shares_and_slopes_do_not_depend_on_the_unit(unit):
    """Scores (1, 3) of any unit are shares (1/4, 3/4); d share_0 / d score = (3/16, -1/16) per unit."""
    score_BTE = jnp.array([[[1.0, 3.0]]]) * unit
    np.testing.assert_allclose(to_sum_one(score_BTE)[0, 0], [0.25, 0.75], rtol=1e-6)
    slope_BTE = jax.grad(lambda x: to_sum_one(x)[0, 0, 0])(score_BTE)
    np.testing.assert_allclose(slope_BTE[0, 0] * unit, [3 / 16, -1 / 16], rtol=1e-5)


def test_no_score_at_all_has_a_finite_slope():
    share_BTE, pull = jax.vjp(to_sum_one, jnp.zeros((1, 1, 3)))
    np.testing.assert_array_equal(share_BTE, jnp.zeros((1, 1, 3)))
    chex.assert_tree_all_finite(pull(jnp.ones((1, 1, 3))))


def test_layer_norm_by_hand():
    """(1, 3) is 2 -+ 1; scaled by (1, 2) and moved by (0, 5)."""
    p = {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 5.0])}
    np.testing.assert_allclose(norm.layer_norm(jnp.array([[[1.0, 3.0]]]), p, 0.0)[0, 0], [-1, 7], rtol=1e-6)


def test_the_scale_is_one_more_than_its_parameter_in_single_precision():
    """In bfloat16 1 + 1/512 is 1; the norm of (4, 4) is (1, 1)."""
    scale_D = jnp.full(2, 1 / 512, jnp.bfloat16)
    got_D = norm.rms_norm_plus_one(jnp.full((1, 1, 2), 4.0), scale_D, 0.0)[0, 0]
    np.testing.assert_allclose(got_D, [1 + 1 / 512] * 2, rtol=1e-6)


@pytest.mark.parametrize("kind", norm.NORMS)
def test_every_kind_starts_as_a_norm_alone_and_keeps_the_dtype(kind):
    m = tiny.model(norm=kind)
    p = specs.init(jax.random.key(0), norm.specs(m, width=2))
    x_BTD = jnp.array([[[3.0, -3.0]]], jnp.bfloat16)
    got_BTD = norm.apply(p, x_BTD, m)
    assert got_BTD.dtype == jnp.bfloat16
    np.testing.assert_allclose(got_BTD.astype(np.float32)[0, 0], [1, -1], rtol=1e-2)


def test_a_kind_that_nobody_knows_is_refused():
    with pytest.raises(UsageError, match=r"model.norm='batch' is not one of rms, rms_plus_one, layer"):
        tiny.model(norm="batch")
