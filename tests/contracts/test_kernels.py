"""What every implementation of a kernel must satisfy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul import api, shapes, tpu_tiles, triton_tiles
from pallas_kernels.testing import assert_close, draw, oracle_matmul, oracle_outer, poison
from tests.pallas_kernels import interpreters
from tests.pallas_kernels.grouped_matmul.small_hopper import small_hopper

# jax interprets these step by step; for every change they run what tells most
INTERPRETED = ("tpu", "triton")
MODELLED = "hopper"  # runs on a model of the chip, where `check` brings what it serves
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in (*INTERPRETED, MODELLED))
NIGHTLY = tuple(pytest.param(name, marks=pytest.mark.nightly) for name in INTERPRETED)
implementations = pytest.mark.parametrize("implementation", (*COMPILED, *INTERPRETED))
interpreted_nightly = pytest.mark.parametrize("implementation", (*COMPILED, *NIGHTLY))
# the interpreter of plain kernels takes seconds for every new shape, and does not know of manual axes
LOOSELY = pytest.param("triton", marks=pytest.mark.nightly)
loosely_nightly = pytest.mark.parametrize("implementation", (*COMPILED, "tpu", LOOSELY))
# what `check` does, it does for Hopper too
ON_HOPPER = pytest.param(MODELLED, marks=pytest.mark.nightly)
all_checked = pytest.mark.parametrize("implementation", (*COMPILED, *INTERPRETED, MODELLED))
checked_nightly = pytest.mark.parametrize("implementation", (*COMPILED, *NIGHTLY, ON_HOPPER))
checked_loosely = pytest.mark.parametrize("implementation", (*COMPILED, "tpu", LOOSELY, ON_HOPPER))
knowing_manual_axes = pytest.mark.parametrize("implementation", (*COMPILED, "tpu"))
tiny_shapes = pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run the kernels of accelerators here, in many small tiles; what is unset is NaN."""
    small = lambda op, of, chip: tpu_tiles.Tiles(min(of.M, 16), min(of.K, 128), min(of.N, 128))
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls(), small_hopper(n=64):
        patch.setattr(tpu_tiles, "choose", small)
        patch.setattr(triton_tiles, "choose", lambda *_: triton_tiles.Tiles(16, 16, 16, warps=4, stages=2))
        yield


def sizes_that_sum_to(total: int, num_groups: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(total, rng.dirichlet(np.full(num_groups, 0.5))).astype(np.int32)


@functools.cache
def product_and_gradients(implementation: str, transpose_rhs: bool = False):
    """A jitted (lhs, rhs, sizes, offset, cotangent) -> (out, dlhs, drhs)."""

    @jax.jit
    def run(lhs_MK, rhs, size_G, offset, cotangent_MN):
        op = lambda lhs_MK, rhs: grouped_matmul(
            lhs_MK,
            rhs,
            size_G,
            group_offset=offset,
            transpose_rhs=transpose_rhs,
            implementation=implementation,
        )
        out_MN, backward = jax.vjp(op, lhs_MK, rhs)
        return out_MN, *backward(cotangent_MN)

    return run


def check(implementation, shape, size_G, offset=0, num_groups=None, dtype=jnp.float32):
    """Compare value and gradients with the oracle, with NaN in all rows that no group holds."""
    num_groups = shape.G if num_groups is None else num_groups
    if implementation == MODELLED:
        units = {"M": 8, "K": 64, "N": 64}
        sizes = {name: -(-getattr(shape, name) // unit) * unit for name, unit in units.items()}
        shape, dtype = dataclasses.replace(shape, **sizes), jnp.bfloat16
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape, dtype=dtype)
    rhs_GKN = rhs_GKN[:num_groups]
    held = (size_G, offset, num_groups)
    lhs_MK, cotangent_MN = poison(lhs_MK, *held), poison(cotangent_MN, *held)
    run = product_and_gradients(implementation)
    out_MN, dlhs_MK, drhs_GKN = run(lhs_MK, rhs_GKN, jnp.asarray(size_G), jnp.int32(offset), cotangent_MN)
    rhs_GNK = np.swapaxes(np.asarray(rhs_GKN, np.float64), 1, 2)
    assert (out_MN.dtype, dlhs_MK.dtype, drhs_GKN.dtype) == (dtype,) * 3
    assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN, size_G, offset), shape.K)
    assert_close(dlhs_MK, oracle_matmul(cotangent_MN, rhs_GNK, size_G, offset), shape.N)
    assert_close(drhs_GKN, oracle_outer(lhs_MK, cotangent_MN, *held), shape.M)


@implementations
def test_four_rows_two_groups_by_hand(implementation):
    lhs_MK = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    rhs_GKN = jnp.array([[[10.0]], [[100.0]]])
    size_G = jnp.array([1, 2])  # row 3 belongs to nobody
    run = product_and_gradients(implementation)
    out_MN, dlhs_MK, drhs_GKN = run(lhs_MK, rhs_GKN, size_G, 0, jnp.ones((4, 1)))
    np.testing.assert_array_equal(out_MN, [[10.0], [200.0], [300.0], [0.0]])
    np.testing.assert_array_equal(dlhs_MK, [[10.0], [100.0], [100.0], [0.0]])
    np.testing.assert_array_equal(drhs_GKN, [[[1.0]], [[5.0]]])
    # the same without the first group's matrix
    out_MN, dlhs_MK, drhs_GKN = run(lhs_MK, rhs_GKN[1:], size_G, 1, jnp.ones((4, 1)))
    np.testing.assert_array_equal(out_MN, [[0.0], [200.0], [300.0], [0.0]])
    np.testing.assert_array_equal(dlhs_MK, [[0.0], [100.0], [100.0], [0.0]])
    np.testing.assert_array_equal(drhs_GKN, [[[5.0]]])


@checked_loosely
@tiny_shapes
@pytest.mark.parametrize("distribution", tuple(shapes.DISTRIBUTIONS))
def test_equals_the_oracle(implementation, shape, distribution):
    check(implementation, shape, shapes.DISTRIBUTIONS[distribution](shape.M, shape.G))


@checked_nightly
def test_every_pattern_of_empty_groups(implementation):
    shape = shapes.TINY[0]
    for pattern in range(2**shape.G):
        empty_G = (pattern >> np.arange(shape.G)) & 1 == 1
        check(implementation, shape, np.where(empty_G, 0, 1 + 2 * np.arange(shape.G)).astype(np.int32))


@checked_nightly
@settings(max_examples=200)
@given(data=st.data())
def test_any_sizes_at_any_offset(implementation, data):
    shape = shapes.TINY[0]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = data.draw(st.integers(0, shape.M))
    num_groups = data.draw(st.sampled_from([3, shape.G]))
    offset = data.draw(st.integers(0, shape.G - num_groups))
    check(implementation, shape, sizes_that_sum_to(rows, shape.G, rng), offset, num_groups)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@all_checked
@settings(max_examples=40)
@given(data=st.data())
def test_any_shape(implementation, data):
    M, K, N, G = (data.draw(st.integers(*limits)) for limits in ((0, 200), (0, 20), (0, 20), (1, 20)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for _ in range(25):
        size_G = sizes_that_sum_to(rng.integers(0, M + 1), G, rng)
        check(implementation, shapes.GroupedShape("any", M, K, N, G), size_G)


@checked_nightly
@pytest.mark.parametrize(("M", "K", "N"), [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_a_width_of_zero(implementation, M, K, N):
    check(implementation, shapes.GroupedShape("zero", M, K, N, G=2), np.array([M // 2, M // 3], np.int32))


@interpreted_nightly
def test_sizes_beyond_the_rows_are_cut(implementation):
    lhs_MK, rhs_GKN, _ = draw(shapes.TINY[1])
    multiply = jax.jit(functools.partial(grouped_matmul, lhs_MK, rhs_GKN, implementation=implementation))
    cut = multiply(jnp.array([1, 5, 7, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(cut, multiply(jnp.array([1, 2, 0, 0, 0, 0, 0, 0])))


@interpreted_nightly
def test_transposed_rhs(implementation):
    shape = shapes.TINY[0]
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape)
    args = (jnp.asarray(shapes.zipf(shape.M, shape.G)), jnp.int32(0), cotangent_MN)
    plain = product_and_gradients(implementation)(lhs_MK, rhs_GKN, *args)
    rhs_GNK = jnp.swapaxes(rhs_GKN, 1, 2)
    out_MN, dlhs_MK, drhs_GNK = product_and_gradients(implementation, True)(lhs_MK, rhs_GNK, *args)
    for actual, expected in zip((out_MN, dlhs_MK, jnp.swapaxes(drhs_GNK, 1, 2)), plain, strict=True):
        assert_close(actual, expected, terms=shape.M)


@all_checked
def test_bfloat16_accumulates_in_float32(implementation):
    shape = shapes.GroupedShape("wide", M=40, K=512, N=8, G=3)
    check(implementation, shape, np.array([20, 0, 13], np.int32), dtype=jnp.bfloat16)


@interpreted_nightly
def test_preferred_element_type(implementation):
    lhs_MK, rhs_GKN, _ = draw(shapes.TINY[0], dtype=jnp.bfloat16)
    size_G = shapes.zipf(75, 8)
    op = functools.partial(grouped_matmul, preferred_element_type=jnp.float32, implementation=implementation)
    out_MN = jax.jit(op)(lhs_MK, rhs_GKN, size_G)
    assert out_MN.dtype == jnp.float32
    assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN, size_G), terms=5)


@interpreted_nightly
def test_outer(implementation):
    shape = shapes.TINY[0]
    lhs_MK, _, rhs_MN = draw(shape)
    held = (shapes.zipf(70, 8), 2, 5)
    out_GKN = grouped_outer(
        poison(lhs_MK, *held),
        poison(rhs_MN, *held),
        held[0],
        group_offset=2,
        num_groups=5,
        implementation=implementation,
    )
    assert_close(out_GKN, oracle_outer(lhs_MK, rhs_MN, *held), shape.M)


@interpreted_nightly
def test_jit_equals_eager(implementation):
    lhs_MK, rhs_GKN, _ = draw(shapes.TINY[0])
    op = functools.partial(grouped_matmul, implementation=implementation)
    size_G = jnp.asarray(shapes.zipf(70, 8))
    np.testing.assert_array_equal(jax.jit(op)(lhs_MK, rhs_GKN, size_G), op(lhs_MK, rhs_GKN, size_G))


@interpreted_nightly
def test_scan_over_layers_equals_a_loop(implementation):
    x_MK, _, _ = draw(shapes.GroupedShape("square", M=33, K=6, N=6, G=3))
    rhs_LGKN = jax.random.normal(jax.random.key(1), (2, 3, 6, 6))
    size_LG = jnp.array([[10, 0, 20], [1, 30, 2]])
    layer = lambda x, inputs: (x + jnp.tanh(grouped_matmul(x, *inputs, implementation=implementation)), None)

    def looped(x_MK, rhs_LGKN):
        for inputs in zip(rhs_LGKN, size_LG, strict=True):
            x_MK, _ = layer(x_MK, inputs)
        return jnp.sum(x_MK**2)

    scanned = lambda x_MK, rhs_LGKN: jnp.sum(jax.lax.scan(layer, x_MK, (rhs_LGKN, size_LG))[0] ** 2)
    actual, expected = (jax.jit(jax.grad(loss, (0, 1)))(x_MK, rhs_LGKN) for loss in (scanned, looped))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)


@interpreted_nightly
def test_vmap(implementation):
    lhs_BMK = jax.random.normal(jax.random.key(0), (3, 20, 4))
    rhs_GKN = jax.random.normal(jax.random.key(1), (2, 4, 5))
    size_BG = jnp.array([[20, 0], [3, 9], [0, 0]])
    op = functools.partial(grouped_matmul, implementation=implementation)
    out_BMN = jax.jit(jax.vmap(op, (0, None, 0)))(lhs_BMK, rhs_GKN, size_BG)
    for out_MN, lhs_MK, size_G in zip(out_BMN, lhs_BMK, size_BG, strict=True):
        assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN, size_G), terms=4)


@knowing_manual_axes
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_replicated_weights_under_shard_map(implementation, axis_type):
    """Rows are split over eight devices, each with sizes of its own; the weights' gradient is summed."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    lhs_MK, rhs_GKN, cotangent_MN = draw(shapes.GroupedShape("rows", M=8 * 6, K=4, N=3, G=2))
    size_PG = np.array([[p % 4, p % 3] for p in range(8)], np.int32)
    rows, replicated = jax.NamedSharding(mesh, P("data")), jax.NamedSharding(mesh, P())
    op = jax.shard_map(
        lambda lhs, rhs, size: grouped_matmul(lhs, rhs, size[0], implementation=implementation),
        mesh=mesh,
        in_specs=(P("data"), P(), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    size = jax.device_put(size_PG, rows)
    loss = lambda lhs, rhs, cotangent: jnp.sum(op(lhs, rhs, size) * cotangent)
    args = [jax.device_put(x, s) for x, s in ((lhs_MK, rows), (rhs_GKN, replicated), (cotangent_MN, rows))]
    dlhs_MK, drhs_GKN = jax.jit(jax.grad(loss, (0, 1)))(*args)
    parts = list(zip(np.split(lhs_MK, 8), np.split(cotangent_MN, 8), size_PG, strict=True))
    assert_close(drhs_GKN, sum(oracle_outer(*part) for part in parts), terms=48)
    rhs_GNK = np.swapaxes(rhs_GKN, 1, 2)
    dlhs_of_parts = [oracle_matmul(cotangent, rhs_GNK, size_G) for _, cotangent, size_G in parts]
    assert_close(dlhs_MK, np.concatenate(dlhs_of_parts), terms=3)


@knowing_manual_axes
def test_experts_held_by_different_devices(implementation):
    """Each of four devices holds two of eight groups and all rows; their results add up to the whole."""
    mesh = jax.make_mesh((4,), ("expert",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    shape = shapes.TINY[0]
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape)
    size_G = jnp.asarray(shapes.zipf(70, 8))

    def held(lhs_MK, rhs_gKN, size_G):
        first = jax.lax.axis_index("expert") * 2
        out_MN = grouped_matmul(lhs_MK, rhs_gKN, size_G, group_offset=first, implementation=implementation)
        return jax.lax.psum(out_MN, "expert")

    op = jax.shard_map(held, mesh=mesh, in_specs=(P(), P("expert"), P()), out_specs=P(), check_vma=True)
    out_MN, backward = jax.vjp(jax.jit(lambda lhs, rhs: op(lhs, rhs, size_G)), lhs_MK, rhs_GKN)
    dlhs_MK, drhs_GKN = backward(cotangent_MN)
    assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN, size_G), shape.K)
    assert_close(dlhs_MK, oracle_matmul(cotangent_MN, np.swapaxes(rhs_GKN, 1, 2), size_G), shape.N)
    assert_close(drhs_GKN, oracle_outer(lhs_MK, cotangent_MN, size_G), shape.M)
