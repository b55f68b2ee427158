"""Derivatives of kernels to the last digits, of those implementations that have float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul import api, shapes
from pallas_kernels.testing import draw

WITHOUT_FLOAT64 = {"tpu", "hopper", "triton"}
with_float64 = pytest.mark.parametrize(
    "implementation", [name for name in api.IMPLEMENTATIONS if name not in WITHOUT_FLOAT64]
)


@with_float64
def test_gradients_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        shape = shapes.GroupedShape("tiny", M=20, K=3, N=2, G=3)
        *operands, _ = draw(shape, dtype=jnp.float64)
        direction = draw(shape, seed=1, dtype=jnp.float64)[:2]
        size_G = jnp.array([2, 0, 16])
        op = functools.partial(grouped_matmul, implementation=implementation)
        loss = lambda lhs, rhs: jnp.sum(jnp.sin(op(lhs, rhs, size_G)))
        at = lambda step: loss(*(x + step * d for x, d in zip(operands, direction, strict=True)))
        slope = jax.jit(lambda: (at(1e-5) - at(-1e-5)) / 2e-5)()
        gradients = jax.jit(jax.grad(loss, (0, 1)))(*operands)
        along = sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))
        np.testing.assert_allclose(along, slope, rtol=1e-7)


@with_float64
def test_second_derivatives(implementation):
    with jax.enable_x64(True):
        shape = shapes.GroupedShape("tiny", M=20, K=3, N=2, G=3)
        lhs_MK, rhs_GKN, _ = draw(shape, dtype=jnp.float64)
        size_G = jnp.array([2, 0, 16])
        group_M = np.repeat([0, 2, 3], [2, 16, 2])

        def by_hand(lhs_MK, rhs_GKN):
            rhs_MKN = jnp.concatenate([rhs_GKN, jnp.zeros_like(rhs_GKN[:1])])[group_M]
            return jnp.einsum("mk,mkn->mn", lhs_MK, rhs_MKN)

        def curvature(multiply):
            loss = lambda *operands: jnp.sum(jnp.sin(multiply(*operands)))
            norm = lambda *operands: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(*operands))
            return jax.jit(jax.grad(norm, (0, 1)))(lhs_MK, rhs_GKN)

        op = lambda lhs, rhs: grouped_matmul(lhs, rhs, size_G, implementation=implementation)
        for actual, expected in zip(curvature(op), curvature(by_hand), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
