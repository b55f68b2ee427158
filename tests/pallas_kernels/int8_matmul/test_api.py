"""Products of 8-bit integers: the published numbers, exact sums, gradients, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import int8_matmul, quantize_channels, quantize_rows, quantized_matmul
from pallas_kernels.grouped_matmul import triton_tiles
from pallas_kernels.int8_matmul import api, shapes, tpu
from tests.pallas_kernels import interpreters

LOOSELY = pytest.param("triton", marks=pytest.mark.nightly)  # every new shape takes seconds
implementations = pytest.mark.parametrize("implementation", api.IMPLEMENTATIONS)
loosely_nightly = pytest.mark.parametrize("implementation", ("reference", "tpu", LOOSELY))


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run the kernels of accelerators here, in small blocks."""
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls():
        patch.setattr(tpu, "MOST", (16, 128, 128))
        patch.setattr(triton_tiles, "choose", lambda *_: triton_tiles.Tiles(16, 16, 32, warps=4, stages=2))
        yield


@functools.cache
def product(implementation: str):
    return jax.jit(functools.partial(int8_matmul, implementation=implementation))


def draw(M: int, K: int, N: int, seed: int = 0):
    """Codes over all of int8 and positive scales."""
    rng = np.random.default_rng(seed)
    codes = lambda *shape: jnp.asarray(rng.integers(-128, 128, shape), jnp.int8)
    scales = lambda size: jnp.asarray(rng.uniform(0.001, 2, size), jnp.float32)
    return codes(M, K), codes(K, N), scales(M), scales(N)


def oracle(lhs_MK, rhs_KN, scale_M, scale_N) -> np.ndarray:
    sum_MN = np.asarray(lhs_MK, np.int64) @ np.asarray(rhs_KN, np.int64)
    return sum_MN * np.asarray(scale_M, np.float64)[:, None] * np.asarray(scale_N, np.float64)


def check(implementation, operands):
    """Three roundings to float32: of the sum, and after each scale."""
    actual = np.asarray(product(implementation)(*operands), np.float64)
    np.testing.assert_allclose(actual, oracle(*operands), rtol=4 * np.finfo(np.float32).eps)


def test_the_published_row():
    """The scale is 2.54 / 127 = 0.02; 1.27 is 63.5 steps, and the half goes to the even code."""
    codes_MK, scale_M = quantize_rows(jnp.array([[0.1, -2.54, 1.27, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(scale_M, [0.02, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(codes_MK, [[5, -127, 64, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(codes_MK[0] * scale_M[0], [0.1, -2.54, 1.28, 0.0], rtol=1e-6)


def test_the_published_error_of_gaussian_rows():
    x_MK = jax.random.normal(jax.random.key(0), (64, 7168))
    codes_MK, scale_M = quantize_rows(x_MK)
    error = jnp.linalg.norm(codes_MK * scale_M[:, None] - x_MK) / jnp.linalg.norm(x_MK)
    assert float(error) == pytest.approx(0.0090, abs=2e-4)


def test_the_published_error_with_a_loud_channel():
    """One of 1024 channels is fifty times as loud: it takes the steps of the others."""
    x_MK = jax.random.normal(jax.random.key(0), (256, 1024)).at[:, 0].multiply(50)
    codes_MK, scale_M = quantize_rows(x_MK)
    others = lambda x: jnp.linalg.norm(x[:, 1:])
    assert float(others(codes_MK * scale_M[:, None] - x_MK) / others(x_MK)) == pytest.approx(0.114, abs=0.01)
    w_KN = jax.random.normal(jax.random.key(1), (1024, 64))
    out_MN = quantized_matmul(x_MK, *quantize_channels(w_KN))
    expected_MN = np.asarray(x_MK, np.float64) @ np.asarray(w_KN, np.float64)
    assert np.linalg.norm(out_MN - expected_MN) / np.linalg.norm(expected_MN) < 0.0626


def test_rows_that_are_not_finite_are_nan_and_touch_no_other():
    x_MK = jnp.array([[1.0, jnp.nan], [2.0, -1.0], [jnp.inf, 0.0], [1e-44, 0.0]])
    codes_MK, scale_M = quantize_rows(x_MK)
    np.testing.assert_array_equal(jnp.isnan(scale_M), [True, False, True, False])
    np.testing.assert_array_equal(codes_MK, [[0, 0], [127, -64], [0, 0], [0, 0]])
    out_MN = quantized_matmul(x_MK, *quantize_channels(jnp.eye(2)))
    np.testing.assert_array_equal(
        jnp.isnan(out_MN), [[True, True], [False, False], [True, True], [False, False]]
    )


def test_channels_are_the_rows_of_the_transpose():
    w_GKN = jax.random.normal(jax.random.key(0), (2, 5, 3))
    codes_GKN, scale_GN = quantize_channels(w_GKN)
    codes_GNK, expected_GN = quantize_rows(jnp.swapaxes(w_GKN, 1, 2))
    np.testing.assert_array_equal(codes_GKN, jnp.swapaxes(codes_GNK, 1, 2))
    np.testing.assert_array_equal(scale_GN, expected_GN)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=4, max_size=4))
def test_codes_are_within_half_a_step(row):
    x_MK = jnp.array([row], jnp.float32)
    codes_MK, scale_M = quantize_rows(x_MK)
    assert np.abs(codes_MK.astype(jnp.int32)).max() <= 127
    error = np.abs(np.asarray(codes_MK, np.float64) * float(scale_M[0]) - np.asarray(x_MK, np.float64))
    assert (error <= 0.5001 * float(scale_M[0])).all()


@implementations
def test_two_by_two_by_hand(implementation):
    """[1 2; 3 -4] @ [10 0; 1 5] = [12 10; 26 -20], rows times 1 and 0.5, columns times 2 and 100."""
    lhs_MK, rhs_KN = jnp.array([[1, 2], [3, -4]], jnp.int8), jnp.array([[10, 0], [1, 5]], jnp.int8)
    out_MN = product(implementation)(lhs_MK, rhs_KN, jnp.array([1.0, 0.5]), jnp.array([2.0, 100.0]))
    np.testing.assert_array_equal(out_MN, [[24.0, 1000.0], [26.0, -1000.0]])


@loosely_nightly
@pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)
def test_equals_the_oracle(implementation, shape):
    check(implementation, draw(shape.M, shape.K, shape.N))


@loosely_nightly
def test_sums_beyond_what_float32_counts_are_exact(implementation):
    """2048 times 128 * 128 and one is 2^25 + 1, which float32 rounds; then 2048 times 128 * 127 go off."""
    column_K = jnp.concatenate([jnp.full(2048, -128), jnp.ones(1), jnp.full(2048, 127)]).astype(jnp.int8)
    lhs_MK = jnp.full((1, 4097), -128, jnp.int8).at[0, 2048].set(1)
    out_MN = product(implementation)(lhs_MK, column_K[:, None], jnp.ones(1), jnp.ones(1))
    assert float(out_MN[0, 0]) == 2048 * 128 + 1


@pytest.mark.nightly
@implementations
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_shape(implementation, data):
    """Fifty draws for every shape."""
    M, K, N = (data.draw(st.integers(1, most)) for most in (70, 300, 200))
    for seed in range(50):
        check(implementation, draw(M, K, N, seed))


@pytest.mark.parametrize(("M", "K", "N"), [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_a_width_of_zero(M, K, N):
    check(None, draw(M, K, N))


@loosely_nightly
def test_gradients_of_scales(implementation):
    lhs_MK, rhs_KN, scale_M, scale_N = draw(5, 20, 7)
    grad_MN = jax.random.normal(jax.random.key(0), (5, 7))
    op = lambda *scales: product(implementation)(lhs_MK, rhs_KN, *scales)
    dscale_M, dscale_N = jax.vjp(op, scale_M, scale_N)[1](grad_MN)
    weighed_MN = oracle(lhs_MK, rhs_KN, np.ones(5), np.ones(7)) * np.asarray(grad_MN, np.float64)
    np.testing.assert_allclose(dscale_M, weighed_MN @ np.asarray(scale_N, np.float64), rtol=1e-4)
    np.testing.assert_allclose(dscale_N, np.asarray(scale_M, np.float64) @ weighed_MN, rtol=1e-4)


def test_the_gradient_in_x_is_that_of_the_dequantised_weights():
    x_MK, w_KN, grad_MN = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(6, 9), (9, 4), (6, 4)])
    )
    rhs_KN, scale_N = quantize_channels(w_KN)
    out_MN, backward = jax.vjp(lambda x, scale: quantized_matmul(x, rhs_KN, scale), x_MK, scale_N)
    dx_MK, dscale_N = backward(grad_MN)
    codes_MK, scale_M = quantize_rows(x_MK)
    np.testing.assert_array_equal(out_MN, int8_matmul(codes_MK, rhs_KN, scale_M, scale_N))
    np.testing.assert_allclose(dx_MK, grad_MN @ (rhs_KN * scale_N[None, :]).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        dscale_N, jnp.sum(grad_MN * out_MN / scale_N[None, :], axis=0), rtol=1e-4, atol=1e-4
    )


def test_bfloat16_rows_give_bfloat16():
    x_MK = jnp.ones((2, 4), jnp.bfloat16)
    out_MN = quantized_matmul(x_MK, *quantize_channels(jnp.eye(4)))
    assert out_MN.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out_MN.astype(jnp.float32), np.ones((2, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, s, t: (a.astype(jnp.int32), b, s, t), "lhs is int32, rhs is int8; expected int8"),
        (lambda a, b, s, t: (a, b, s[:, None], t), r"scales are \(2, 1\) and \(4,\); expected \[M, K\]"),
        (lambda a, b, s, t: (a, b[:2], s, t), r"rhs is \(2, 4\)"),
    ],
)
def test_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        int8_matmul(*change(*draw(2, 3, 4)))


def test_sums_that_could_leave_int32_are_refused():
    shapes_of = jax.eval_shape(lambda: draw(1, 4, 1))
    long = [
        jax.ShapeDtypeStruct(s, x.dtype)
        for s, x in zip([(1, 131072), (131072, 1), (1,), (1,)], shapes_of, strict=True)
    ]
    with pytest.raises(ValueError, match="131072 products of int8 could leave int32, at most 131071"):
        jax.eval_shape(int8_matmul, *long)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_transposed_rhs_gives_the_same(num_rows):
    lhs_MK, rhs_KN, scale_M, scale_N = draw(num_rows, 7, 5)
    wanted = int8_matmul(lhs_MK, rhs_KN, scale_M, scale_N)
    found = int8_matmul(lhs_MK, rhs_KN.T, scale_M, scale_N, transpose_rhs=True)
    np.testing.assert_array_equal(found, wanted)
    slope = lambda rhs, **how: jax.grad(lambda x: quantized_matmul(x, rhs, scale_N, **how).sum())(
        lhs_MK.astype(jnp.float32)
    )
    np.testing.assert_array_equal(slope(rhs_KN.T, transpose_rhs=True), slope(rhs_KN))
    with pytest.raises(ValueError, match=r"expected \[M, K\], \[N, K\], \[M\] and \[N\]"):
        int8_matmul(lhs_MK, rhs_KN, scale_M, scale_N, transpose_rhs=True)
