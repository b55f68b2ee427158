"""What every implementation of gated grouped products must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import grouped_swiglu, permute
from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_swiglu import api, shapes
from pallas_kernels.grouped_swiglu.shapes import SwigluShape
from tests.pallas_kernels import interpreters
from tests.pallas_kernels.grouped_swiglu import oracles

INTERPRETED = ("tpu",)  # step by step
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in (*INTERPRETED, "gpu"))
implementations = pytest.mark.parametrize(
    "implementation", [name for name in api.IMPLEMENTATIONS if name != "gpu"]
)
interpreted_nightly = pytest.mark.parametrize(
    "implementation",
    (*COMPILED, *(pytest.param(name, marks=pytest.mark.nightly) for name in INTERPRETED)),
)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run TPU kernels here, in many small tiles."""
    small = lambda op, of, chip: tpu_tiles.Tiles(min(of.M, 16), min(of.K, 128), min(of.N, 128))
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls():
        patch.setattr(tpu_tiles, "choose", small)
        yield


def slots_and_sizes(shape: SwigluShape, seed: int = 0, empty: float = 0.2):
    """((order_R, home_NK), size_G) of slots sorted by group, empty ones last."""
    rng = np.random.default_rng(seed)
    group_NK = rng.choice(shape.G, p=rng.dirichlet(np.full(shape.G, 0.5)), size=(shape.N, shape.K))
    group_NK = np.where(rng.random(group_NK.shape) < empty, shape.G, group_NK)
    order_R = np.argsort(group_NK.reshape(-1), kind="stable").astype(np.int32)
    home_NK = np.argsort(order_R).reshape(group_NK.shape)
    home_NK = np.where(group_NK < shape.G, home_NK, order_R.size).astype(np.int32)
    size_G = np.bincount(group_NK.reshape(-1), minlength=shape.G + 1)[: shape.G].astype(np.int32)
    return (order_R, home_NK), size_G


def drawn(shape: SwigluShape, size_G, dtype=jnp.float32, seed: int = 0):
    """(x_ND, gate_GDF, up_GDF, d_h_RF); gradients of rows in no group are NaN."""
    rng = np.random.default_rng(seed)
    d_h_RF = rng.standard_normal((shape.N * shape.K, shape.F))
    d_h_RF[np.sum(size_G) :] = np.nan
    x_ND = rng.standard_normal((shape.N, shape.D))
    matrices = rng.standard_normal((2, shape.G, shape.D, shape.F)) * max(shape.D, 1) ** -0.5
    return [jnp.asarray(x, dtype) for x in (x_ND, *matrices, d_h_RF)]


@functools.cache
def value_and_gradients(implementation, activation="silu", keep=True):
    """A jitted ((x, gate, up, d_h), slots, sizes, offset) -> (h, dx, d_gate, d_up)."""

    @jax.jit
    def run(floats, slots, size_G, offset=0):
        *floats, d_h_RF = floats
        op = functools.partial(
            grouped_swiglu,
            slots=slots,
            activation=activation,
            group_offset=offset,
            keep=keep,
            implementation=implementation,
        )
        h_RF, pull = jax.vjp(lambda *floats: op(*floats, size_G), *floats)
        return h_RF, *pull(d_h_RF)

    return run


def assert_near(actual, expected, dtype) -> None:
    """Float32 sums of tens of products; narrow products and gradients round before they are used."""
    bound = {"bfloat16": 4e-2, "float32": 2e-5}[jnp.dtype(dtype).name]
    actual = np.asarray(actual, np.float64)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=bound * max(1, np.max(np.abs(expected), initial=0))
    )


def check(implementation, shape, seed=0, dtype=jnp.float32, activation="silu", keep=True):
    """Compare with the oracle, of tokens in slots; absent tokens and foreign gradients are NaN."""
    (order_R, home_NK), size_G = slots_and_sizes(shape, seed)
    x_ND, *others = drawn(shape, size_G, dtype, seed)
    held_NK = home_NK < len(order_R)
    x_ND = jnp.where(held_NK.any(1)[:, None], x_ND, jnp.nan)
    slots = jnp.asarray(order_R), jnp.asarray(home_NK)
    run = value_and_gradients(implementation, activation, keep)
    h_RF, d_x_ND, *d_matrices = run((x_ND, *others), slots, size_G)
    rows_RD = np.asarray(x_ND, np.float64)[order_R // max(shape.K, 1)]
    wanted, d_rows_RD, *d_matrices_wanted = oracles.oracle((rows_RD, *others), size_G, activation)
    assert {x.dtype for x in (h_RF, d_x_ND, *d_matrices)} == {jnp.dtype(dtype)}
    assert np.all(np.asarray(h_RF)[np.sum(size_G) :] == 0)
    d_rows_RD = np.concatenate([d_rows_RD, np.zeros_like(d_rows_RD[:1])]) if len(d_rows_RD) else d_rows_RD
    d_x_wanted_ND = d_rows_RD[home_NK].sum(1) if home_NK.size else np.zeros(x_ND.shape)
    pairs = zip((h_RF, d_x_ND, *d_matrices), (wanted, d_x_wanted_ND, *d_matrices_wanted), strict=True)
    for actual, expected in pairs:
        assert_near(actual, expected, dtype)


@implementations
def test_three_rows_by_hand(implementation):
    """relu(x gate) * (x up): 1*10 * 1*2 = 20; -2*10 is cut to 0; row 2 belongs to nobody."""
    x_ND, size_G = jnp.array([[1.0], [-2.0], [jnp.nan]]), jnp.array([1, 1])
    gate_GDF, up_GDF = jnp.array([[[10.0]], [[10.0]]]), jnp.array([[[2.0]], [[3.0]]])
    run = value_and_gradients(implementation, "relu")
    h_RF, d_x_ND, d_gate_GDF, d_up_GDF = run((x_ND, gate_GDF, up_GDF, jnp.ones((3, 1))), None, size_G)
    np.testing.assert_array_equal(h_RF, [[20.0], [0.0], [0.0]])
    np.testing.assert_array_equal(d_x_ND, [[40.0], [0.0], [0.0]])  # 10 * 2 + 2 * 10
    np.testing.assert_array_equal(d_gate_GDF, [[[2.0]], [[0.0]]])
    np.testing.assert_array_equal(d_up_GDF, [[[10.0]], [[0.0]]])


@interpreted_nightly
@pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed_again"])
def test_equals_the_oracle(implementation, shape, keep):
    check(implementation, shape, keep=keep)


@pytest.mark.parametrize("implementation", INTERPRETED)
def test_one_shape_of_those_that_are_interpreted(implementation):
    check(implementation, shapes.TINY[0])


@interpreted_nightly
@pytest.mark.parametrize("activation", list(oracles.ACTIVATIONS))
def test_every_activation(implementation, activation):
    check(implementation, shapes.TINY[0], activation=activation)


@implementations
def test_bfloat16(implementation):
    check(implementation, SwigluShape("wide", N=20, K=2, D=256, F=16, G=3), dtype=jnp.bfloat16)


@interpreted_nightly
@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_any_slots(implementation, seed):
    check(implementation, shapes.TINY[0], seed)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@implementations
@settings(max_examples=40)
@given(data=st.data())
def test_any_shape(implementation, data):
    limits = {"N": (0, 40), "K": (0, 5), "D": (0, 20), "F": (0, 20), "G": (1, 12)}
    dims = {name: data.draw(st.integers(*limit)) for name, limit in limits.items()}
    first = data.draw(st.integers(0, 2**31))
    for seed in range(first, first + 25):
        check(implementation, SwigluShape("any", **dims), seed)


@interpreted_nightly
@pytest.mark.parametrize("zero", ["N", "K", "D", "F"])
def test_a_width_of_zero(implementation, zero):
    check(implementation, SwigluShape("zero", **{"N": 4, "K": 2, "D": 3, "F": 5, "G": 2} | {zero: 0}))


@interpreted_nightly
def test_slots_are_permuted_rows(implementation):
    shape = shapes.TINY[0]
    slots, size_G = slots_and_sizes(shape)
    floats = drawn(shape, size_G)[:3]
    op = functools.partial(grouped_swiglu, implementation=implementation)
    fused = jax.jit(lambda x, gate, up: op(x, gate, up, size_G, slots=slots))(*floats)
    apart = jax.jit(lambda x, gate, up: op(permute(x, *slots), gate, up, size_G))(*floats)
    np.testing.assert_allclose(fused, apart, rtol=1e-6, atol=1e-6)


@interpreted_nightly
def test_groups_that_are_held(implementation):
    """Of eight groups the matrices of groups 2 to 4 are here."""
    shape, held = SwigluShape("held", N=50, K=1, D=5, F=7, G=8), slice(2, 5)
    size_G = np.array([9, 0, 8, 0, 11, 3, 0, 12], np.int32)
    rows_RD, gate_GDF, up_GDF, d_h_RF = drawn(shape, size_G)
    inside_R = np.isin(np.arange(50), np.r_[9:28])[:, None]
    rows_RD, d_h_RF = (jnp.where(inside_R, x, jnp.nan) for x in (rows_RD, d_h_RF))
    floats = rows_RD, gate_GDF[held], up_GDF[held], d_h_RF
    actual = value_and_gradients(implementation)(floats, None, size_G, jnp.int32(2))
    for got, wanted in zip(actual, oracles.oracle(floats, size_G, offset=2), strict=True):
        assert_near(got, wanted, jnp.float32)


@pytest.mark.parametrize(
    "implementation", ["xla_tiles", pytest.param("reference", marks=pytest.mark.nightly)]
)
def test_first_and_second_derivatives_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        shape = SwigluShape("tiny", N=6, K=2, D=3, F=2, G=3)
        slots, size_G = slots_and_sizes(shape)
        at, step = (drawn(shape, size_G, jnp.float64, seed)[:3] for seed in range(2))
        op = functools.partial(grouped_swiglu, slots=slots, implementation=implementation)
        loss = jax.jit(lambda *floats: jnp.sum(jnp.sin(op(*floats, size_G))))
        slope = jax.jit(lambda *floats: sum(map(jnp.vdot, jax.grad(loss, (0, 1, 2))(*floats), step)))
        for f in (loss, slope):
            moved = lambda size, f=f: f(*(x + size * d for x, d in zip(at, step, strict=True)))
            along = sum(map(jnp.vdot, jax.jit(jax.grad(f, (0, 1, 2)))(*at), step))
            np.testing.assert_allclose(along, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


@interpreted_nightly
def test_vmap(implementation):
    shape = shapes.TINY[0]
    batch = [(drawn(shape, size_G, seed=seed), slots, size_G) for seed in range(2)
             for slots, size_G in [slots_and_sizes(shape, seed)]]  # fmt: skip
    run = value_and_gradients(implementation)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batch)
    batched = jax.vmap(run)(*stacked)
    for i, one in enumerate(batch):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, [x[i] for x in batched], list(run(*one)))


@interpreted_nightly
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_replicated_matrices_under_shard_map(implementation, axis_type):
    """Tokens are split over four devices, each with slots of its own; the matrices' gradient is summed."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(axis_type,))
    shape = SwigluShape("part", N=6, K=2, D=4, F=3, G=2)
    parts = [slots_and_sizes(shape, seed) for seed in range(4)]
    floats = [drawn(shape, size_G, seed=seed) for seed, (_, size_G) in enumerate(parts)]
    gate_GDF, up_GDF = floats[0][1:3]
    slots, size_G = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    x_ND, d_h_RF = (np.concatenate([part[i] for part in floats]) for i in (0, 3))

    def part(x_ND, gate_GDF, up_GDF, slots, size_G):
        return grouped_swiglu(x_ND, gate_GDF, up_GDF, size_G, slots=slots, implementation=implementation)

    split = P("data")
    op = jax.shard_map(
        part, mesh=mesh, in_specs=(split, P(), P(), (split, split), split), out_specs=split, check_vma=True
    )
    put = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))
    rows = jax.tree.map(lambda x: put(x, split), (slots, size_G))
    operands = put(x_ND, split), put(gate_GDF, P()), put(up_GDF, P())
    h_RF, pull = jax.vjp(jax.jit(lambda x, gate, up: op(x, gate, up, *rows)), *operands)
    d_x_ND, *d_matrices = map(np.asarray, pull(put(d_h_RF, split)))
    wanted = [
        value_and_gradients(implementation)((x, gate_GDF, up_GDF, d_h), own, sizes)
        for (x, _, _, d_h), (own, sizes) in zip(floats, parts, strict=True)
    ]
    h_wanted, d_x_wanted, *d_matrices_wanted = zip(*wanted, strict=True)
    assert_near(h_RF, np.concatenate(h_wanted), jnp.float32)
    assert_near(d_x_ND, np.concatenate(d_x_wanted), jnp.float32)
    for actual, partial in zip(d_matrices, d_matrices_wanted, strict=True):
        assert_near(actual, sum(partial), jnp.float32)


@pytest.mark.parametrize(("keep", "pairs"), [(True, 2), (False, 0)])
def test_what_is_kept_for_the_backward_pass(keep, pairs):
    """The operands, and both products or neither; never the rows."""
    shape = SwigluShape("kept", N=30, K=3, D=4, F=5, G=2)
    slots, size_G = slots_and_sizes(shape)
    floats = drawn(shape, size_G)[:3]
    _, pull = jax.vjp(lambda *floats: grouped_swiglu(*floats, size_G, slots=slots, keep=keep), *floats)
    dims = [x.shape for x in jax.tree.leaves(pull) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sorted(dims) == sorted([(30, 4), (2, 4, 5), (2, 4, 5), *[(90, 5)] * pairs])


def test_what_does_not_fit_is_refused():
    x_ND, gate_GDF, size_G = jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.array([1, 2])
    with pytest.raises(ValueError, match=r"x is \(4, 2\).*expected \[N, D\] and \[G, D, F\]"):
        grouped_swiglu(x_ND[:, :2], gate_GDF, gate_GDF, size_G)
    with pytest.raises(ValueError, match="expected the same shape"):
        grouped_swiglu(x_ND, gate_GDF, gate_GDF[..., :4], size_G)
    with pytest.raises(ValueError, match=r"slots are \(8,\) and \(3, 2\)"):
        slots = jnp.arange(8), jnp.zeros((3, 2), jnp.int32)
        grouped_swiglu(x_ND, gate_GDF, gate_GDF, size_G, slots=slots)
    with pytest.raises(ValueError, match="activation='swish' is not one of silu, relu, gelu"):
        grouped_swiglu(x_ND, gate_GDF, gate_GDF, size_G, activation="swish")
