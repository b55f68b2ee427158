"""Grouped products with 8-bit matrices: values, what does not fit, memory, compiled for accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    grouped_matmul,
    implementations,
    quantize_channels,
    quantize_rows,
    quantized_grouped_matmul,
)
from pallas_kernels.grouped_matmul import groups, shapes, tpu_tiles, triton_tiles
from pallas_kernels.grouped_matmul.api import IMPLEMENTATIONS
from pallas_kernels.testing import assert_close, draw, oracle_matmul, oracle_outer, poison
from pallas_kernels.tpu_chips import VMEM_SHARE
from tests.pallas_kernels import interpreters, topologies

DEEPSEEK = shapes.PUBLISHED[-1]
WITH_INT8 = [name for name, module in IMPLEMENTATIONS.items() if hasattr(module, "scaled_matmul")]
night = pytest.param(shapes.PUBLISHED[0], marks=pytest.mark.nightly, id="mixtral")
published = pytest.mark.parametrize("shape", [pytest.param(DEEPSEEK, id="deepseek"), night])
both_ways = pytest.mark.parametrize("transpose_rhs", [False, pytest.param(True, marks=pytest.mark.nightly)])


@pytest.fixture
def interpreter(monkeypatch):
    """Run the kernels of accelerators here, in small tiles."""
    small = lambda op, of, chip: tpu_tiles.Tiles(min(of.M, 16), min(of.K, 128), min(of.N, 128))
    monkeypatch.setattr(tpu_tiles, "choose", small)
    monkeypatch.setattr(triton_tiles, "choose", lambda *_: triton_tiles.Tiles(16, 16, 16, warps=4, stages=2))
    with interpreters.pallas_calls():
        yield


def test_three_rows_two_groups_by_hand():
    """Codes 3 and -5 with scales 10 and 0.5 stand for matrices 30 and -2.5; nobody has the last row."""
    lhs_MK, code_GKN = jnp.array([[1.0], [2.0], [jnp.nan]]), jnp.array([[[3]], [[-5]]], jnp.int8)
    op = lambda lhs, scale: grouped_matmul(lhs, code_GKN, jnp.array([1, 1]), rhs_scale_GN=scale)
    out_MN, backward = jax.vjp(op, lhs_MK, jnp.array([[10.0], [0.5]]))
    dlhs_MK, dscale_GN = backward(jnp.array([[1.0], [1.0], [jnp.nan]]))
    np.testing.assert_array_equal(out_MN, [[30.0], [-5.0], [0.0]])
    np.testing.assert_array_equal(dlhs_MK, [[30.0], [-2.5], [0.0]])
    np.testing.assert_array_equal(dscale_GN, [[3.0], [-10.0]])  # sum of row * code


@pytest.mark.parametrize("implementation", WITH_INT8)
def test_rows_that_are_rounded_too(interpreter, monkeypatch, implementation):
    """What is summed is exact, on any platform's types; NaN stays with its row."""
    monkeypatch.setattr(
        implementations, "platform", lambda: IMPLEMENTATIONS[implementation].PLATFORM or "cpu"
    )
    draw = np.random.default_rng(0)
    lhs_MK, scale_GN = draw.normal(size=(9, 6)).astype(np.float32), draw.uniform(1, 2, (2, 5))
    lhs_MK[[1, 8]] = np.nan
    code_GKN = draw.integers(-127, 128, (2, 6, 5)).astype(np.int8)
    given = jnp.asarray(lhs_MK), jnp.asarray(code_GKN), jnp.array([3, 4]), jnp.asarray(scale_GN, jnp.float32)
    out_MN = jax.jit(lambda *given: quantized_grouped_matmul(*given, implementation=implementation))(*given)
    codes_MK, scale_M = (np.asarray(x, np.float64) for x in quantize_rows(given[0]))
    for row, group in enumerate([0, 0, 0, 1, 1, 1, 1]):
        wanted = codes_MK[row] @ code_GKN[group].astype(np.float64) * scale_M[row] * scale_GN[group]
        np.testing.assert_allclose(out_MN[row], wanted, rtol=1e-5)
    np.testing.assert_array_equal(out_MN[7:], 0)


@pytest.mark.parametrize("implementation", WITH_INT8)
@both_ways
def test_equals_the_oracle(interpreter, implementation, transpose_rhs):
    """Value and gradients are those of the float matrices that the codes stand for."""
    shape = shapes.TINY[0]
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape)
    code_GKN, scale_GN = quantize_channels(rhs_GKN[:5])
    held = (shapes.zipf(70, 8), 2, 5)
    lhs_MK, cotangent_MN = poison(lhs_MK, *held), poison(cotangent_MN, *held)
    rhs = jnp.swapaxes(code_GKN, 1, 2) if transpose_rhs else code_GKN

    @jax.jit
    def run(lhs_MK, scale_GN, cotangent_MN):
        how = {"group_offset": 2, "transpose_rhs": transpose_rhs, "implementation": implementation}
        op = lambda lhs_MK, scale_GN: grouped_matmul(lhs_MK, rhs, held[0], rhs_scale_GN=scale_GN, **how)
        out_MN, backward = jax.vjp(op, lhs_MK, scale_GN)
        return out_MN, *backward(cotangent_MN)

    out_MN, dlhs_MK, dscale_GN = run(lhs_MK, scale_GN, cotangent_MN)
    float_GKN = np.asarray(code_GKN, np.float64) * np.asarray(scale_GN, np.float64)[:, None, :]
    assert_close(out_MN, oracle_matmul(lhs_MK, float_GKN, *held[:2]), shape.K)
    assert_close(dlhs_MK, oracle_matmul(cotangent_MN, np.swapaxes(float_GKN, 1, 2), *held[:2]), shape.N)
    drhs_GKN = oracle_outer(lhs_MK, cotangent_MN, *held)
    dscale = np.sum(np.asarray(code_GKN, np.float64) * drhs_GKN, axis=1)
    np.testing.assert_allclose(dscale_GN, dscale, rtol=1e-5, atol=1e-3)  # sums of hundreds times a code


def test_spread_by_hand():
    """Rows 1 and 2 are group 0's, row 3 is group 2's; group 1 is empty, and so is its NaN."""
    start_G, end_G = jnp.array([1, 3, 3]), jnp.array([3, 3, 4])
    x_GN = jnp.array([[5.0], [jnp.nan], [7.0]])
    np.testing.assert_array_equal(groups.spread(x_GN, start_G, end_G, 6), [[0], [5], [5], [7], [0], [0]])


@pytest.mark.parametrize(
    ("lhs", "rhs", "scale", "message"),
    [
        (
            jnp.float32,
            jnp.float32,
            (2, 3),
            "lhs is float32, rhs is float32; rhs_scale is for floats times int8",
        ),
        (jnp.int8, jnp.int8, (2, 3), "lhs is int8, rhs is int8; rhs_scale is for floats times int8"),
        (
            jnp.float32,
            jnp.int8,
            (2, 4),
            r"rhs_scale is \(2, 4\), rhs is \(2, 4, 3\); expected a scale \(2, 3\)",
        ),
    ],
)
def test_what_does_not_fit(lhs, rhs, scale, message):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(
            jnp.ones((5, 4), lhs), jnp.ones((2, 4, 3), rhs), jnp.array([2, 3]), rhs_scale_GN=jnp.ones(scale)
        )


def operands(shape, transpose_rhs: bool = False, dtype=jnp.bfloat16):
    M, K, N, G = shape.M, shape.K, shape.N, shape.G
    rhs = (G, N, K) if transpose_rhs else (G, K, N)
    return ((M, K), dtype), (rhs, jnp.int8), ((G,), jnp.int32), ((G, N), jnp.float32)


def product(transpose_rhs: bool, implementation: str | None = None):
    how = {"transpose_rhs": transpose_rhs, "implementation": implementation}
    return lambda lhs, rhs, size_G, scale_GN: grouped_matmul(lhs, rhs, size_G, rhs_scale_GN=scale_GN, **how)


def test_on_cpu_one_matrix_at_a_time_is_made_float():
    shape = shapes.GroupedShape("bank", M=512, K=256, N=256, G=64)
    given = [jax.ShapeDtypeStruct(*operand) for operand in operands(shape, dtype=jnp.float32)]
    program = jax.jit(product(False, "xla_tiles")).lower(*given).compile()
    matrix = 4 * shape.K * shape.N
    assert program.memory_analysis().temp_size_in_bytes < 16 * matrix  # all of them would be 64


@topologies.needs_libtpu
@topologies.generations
@published
@both_ways
def test_compiles_for_tpu(generation, shape, transpose_rhs):
    with topologies.tpu(generation) as mesh:
        program = topologies.compiled(mesh, product(transpose_rhs), *operands(shape, transpose_rhs))
    (vmem,) = topologies.vmem_of_kernels(program)
    assert vmem <= VMEM_SHARE * topologies.VMEM[generation]
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20  # no matrix is copied


@topologies.needs_cuda_compiler
@pytest.mark.parametrize("gpu", topologies.GPUS)
@published
@both_ways
def test_compiles_for_gpu(gpu, shape, transpose_rhs):
    with topologies.gpu(gpu) as mesh:
        run = product(transpose_rhs, "triton")
        (kernel,) = topologies.ptx_kernels(gpu, mesh, run, *operands(shape, transpose_rhs))
    assert kernel.used["spilled"] == 0
    assert "bf16.bf16" in kernel.text  # on the tensor cores


@topologies.needs_cuda_compiler
def test_a_bank_that_jax_cannot_address_is_left_to_xla():
    """DeepSeek-V3's 256 matrices are 3.8e9 elements and as many bytes."""
    whole = shapes.PUBLISHED[-2]
    with topologies.gpu("a100"):
        chosen = jax.make_jaxpr(product(False))(*(jax.ShapeDtypeStruct(*x) for x in operands(whole)))
    assert "pallas_call" not in str(chosen)
