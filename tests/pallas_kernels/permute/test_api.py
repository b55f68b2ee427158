"""What every implementation of the two permutations must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import permute, unpermute
from pallas_kernels.permute import api, shapes, tpu
from pallas_kernels.permute.shapes import PermuteShape
from pallas_kernels.testing import assert_close
from tests.pallas_kernels import interpreters

INTERPRETED = ("tpu",)  # step by step
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in INTERPRETED)
implementations = pytest.mark.parametrize("implementation", api.IMPLEMENTATIONS)
interpreted_nightly = pytest.mark.parametrize(
    "implementation",
    (*COMPILED, *(pytest.param(name, marks=pytest.mark.nightly) for name in INTERPRETED)),
)
tiny_shapes = pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run TPU kernels here, in steps of few rows."""
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls():
        patch.setattr(tpu, "HEIGHTS", (8,))
        patch.setattr(tpu, "LANES", 8)
        yield


def sorted_slots(shape: PermuteShape, seed: int = 0, empty: float = 0.3, spare: int = 0):
    """(order_R, home_NK) of slots sorted by expert; some are empty, `spare` rows more belong to nobody."""
    rng = np.random.default_rng(seed)
    expert_NK = rng.integers(0, shape.E, (shape.N, shape.K))
    is_full_NK = rng.random(expert_NK.shape) >= empty
    order_R = np.argsort(np.where(is_full_NK, expert_NK, shape.E).reshape(-1), kind="stable")
    home_NK = np.argsort(order_R).reshape(expert_NK.shape)
    order_R = np.concatenate([order_R, np.full(spare, order_R.size)])
    return order_R.astype(np.int32), np.where(is_full_NK, home_NK, order_R.size).astype(np.int32)


def drawn(shape: PermuteShape, home_NK, num_rows: int, seed: int = 0, dtype=jnp.float32):
    """(x_ND, rows_RD, gate_NK), with NaN in rows at no home and in gates of slots that are nowhere."""
    rng = np.random.default_rng(seed)
    is_home_R = np.isin(np.arange(num_rows), home_NK)
    rows_RD = np.where(is_home_R[:, None], rng.standard_normal((num_rows, shape.D)), np.nan)
    gate_NK = np.where(home_NK < num_rows, rng.standard_normal(home_NK.shape), np.nan)
    x_ND = rng.standard_normal((shape.N, shape.D))
    return jnp.asarray(x_ND, dtype), jnp.asarray(rows_RD, dtype), jnp.asarray(gate_NK, jnp.float32)


def oracle_sum(rows_RD, home_NK, gate_NK) -> np.ndarray:
    """`unpermute` in float64; reads no row that is at no home."""
    rows_RD, gate_NK = np.asarray(rows_RD, np.float64), np.asarray(gate_NK, np.float64)
    y_ND = np.zeros((len(home_NK), rows_RD.shape[1]))
    for n, k in np.argwhere(home_NK < len(rows_RD)):
        y_ND[n] += gate_NK[n, k] * rows_RD[home_NK[n, k]]
    return y_ND


def oracle_slopes(d_y_ND, rows_RD, home_NK, gate_NK) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `unpermute` in float64."""
    d_y_ND, rows_RD, gate_NK = (np.asarray(x, np.float64) for x in (d_y_ND, rows_RD, gate_NK))
    d_rows_RD, d_gate_NK = np.zeros_like(rows_RD), np.zeros_like(gate_NK)
    for n, k in np.argwhere(home_NK < len(rows_RD)):
        d_rows_RD[home_NK[n, k]] = gate_NK[n, k] * d_y_ND[n]
        d_gate_NK[n, k] = d_y_ND[n] @ rows_RD[home_NK[n, k]]
    return d_rows_RD, d_gate_NK


@functools.cache
def there_and_back(implementation: str):
    """A jitted (x, rows, order, home, gate) -> (there, dx), (sum, d_rows, d_gate); rows and x pull back."""

    @jax.jit
    def run(x_ND, rows_RD, order_R, home_NK, gate_NK):
        there = lambda x_ND: permute(x_ND, order_R, home_NK, implementation=implementation)
        back = lambda rows_RD, gate_NK: unpermute(
            rows_RD, order_R, home_NK, gate_NK, implementation=implementation
        )
        there_RD, pull_there = jax.vjp(there, x_ND)
        y_ND, pull_back = jax.vjp(back, rows_RD, gate_NK)
        return (there_RD, *pull_there(rows_RD)), (y_ND, *pull_back(x_ND))

    return run


def check(implementation, shape, seed=0, empty=0.3, spare=0, dtype=jnp.float32):
    """Compare values and gradients with the oracles, with NaN in all that must not be looked at."""
    order_R, home_NK = sorted_slots(shape, seed, empty, spare)
    x_ND, rows_RD, gate_NK = drawn(shape, home_NK, len(order_R), seed, dtype)
    (there_RD, d_x_ND), (y_ND, d_rows_RD, d_gate_NK) = there_and_back(implementation)(
        x_ND, rows_RD, jnp.asarray(order_R), jnp.asarray(home_NK), gate_NK
    )
    wanted = [x.dtype for x in (there_RD, d_x_ND, y_ND, d_rows_RD, d_gate_NK)]
    assert wanted == [dtype] * 4 + [jnp.float32]
    held = home_NK < len(order_R)
    np.testing.assert_array_equal(
        np.asarray(there_RD)[home_NK[held]], np.asarray(x_ND)[np.argwhere(held)[:, 0]]
    )
    assert_close(d_x_ND, oracle_sum(rows_RD, home_NK, np.ones(home_NK.shape)), shape.K)
    assert_close(y_ND, oracle_sum(rows_RD, home_NK, gate_NK), shape.K)
    d_rows_wanted_RD, d_gate_wanted_NK = oracle_slopes(x_ND, rows_RD, home_NK, gate_NK)
    assert_close(d_rows_RD, d_rows_wanted_RD)
    assert_close(d_gate_NK, d_gate_wanted_NK, shape.D)


@implementations
def test_two_tokens_by_hand(implementation):
    """Token 0 goes to experts 1 and 0, token 1 to expert 0 alone; its second slot is nowhere."""
    order_R = jnp.array([1, 2, 0, 3])
    home_NK = jnp.array([[2, 0], [1, 4]])
    run = there_and_back(implementation)
    x_ND, rows_RD = jnp.array([[1.0], [2.0]]), jnp.array([[10.0], [20.0], [30.0], [jnp.nan]])
    gate_NK = jnp.array([[0.5, 0.25], [1.0, jnp.nan]])
    (there_RD, d_x_ND), (y_ND, d_rows_RD, d_gate_NK) = run(x_ND, rows_RD, order_R, home_NK, gate_NK)
    np.testing.assert_array_equal(there_RD[:, 0], [1, 2, 1, 2])
    np.testing.assert_array_equal(d_x_ND[:, 0], [40, 20])
    np.testing.assert_array_equal(y_ND[:, 0], [17.5, 20])
    np.testing.assert_array_equal(d_rows_RD[:, 0], [0.25, 2, 0.5, 0])
    np.testing.assert_array_equal(d_gate_NK, [[30, 10], [40, 0]])


@implementations
@tiny_shapes
def test_equals_the_oracle(implementation, shape):
    check(implementation, shape, spare=5)


@implementations
def test_bfloat16_is_summed_in_float32(implementation):
    check(implementation, PermuteShape("even", N=9, K=3, D=48, E=4), spare=2, dtype=jnp.bfloat16)


@interpreted_nightly
@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_any_slots(implementation, seed, empty):
    check(implementation, shapes.TINY[0], seed, empty)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@implementations
@settings(max_examples=40)
@given(data=st.data())
def test_any_shape(implementation, data):
    N, K, D = (data.draw(st.integers(*limits)) for limits in ((0, 60), (0, 9), (0, 40)))
    shape = PermuteShape("any", N, K, D, data.draw(st.integers(1, 20)))
    first, spare = data.draw(st.integers(0, 2**31)), data.draw(st.integers(0, 20))
    for seed in range(first, first + 25):
        check(implementation, shape, seed, spare=spare)


@interpreted_nightly
@pytest.mark.parametrize(("N", "K", "D"), [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_a_width_of_zero(implementation, N, K, D):
    check(implementation, PermuteShape("zero", N, K, D, E=2))


@interpreted_nightly
def test_without_gates_rows_are_summed(implementation):
    order_R, home_NK = sorted_slots(shapes.TINY[0], spare=3)
    x_ND, rows_RD, _ = drawn(shapes.TINY[0], home_NK, len(order_R))
    op = lambda rows_RD: unpermute(rows_RD, order_R, home_NK, implementation=implementation)
    y_ND, pull = jax.vjp(jax.jit(op), rows_RD)
    ones_NK = np.ones(home_NK.shape)
    assert_close(y_ND, oracle_sum(rows_RD, home_NK, ones_NK), 3)
    assert_close(pull(x_ND)[0], oracle_slopes(x_ND, rows_RD, home_NK, ones_NK)[0])


@pytest.mark.parametrize("implementation", ["xla", pytest.param("reference", marks=pytest.mark.nightly)])
def test_first_and_second_derivatives_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        shape = PermuteShape("tiny", N=5, K=2, D=3, E=3)
        order_R, home_NK = map(jnp.asarray, sorted_slots(shape))
        rng = np.random.default_rng(0)
        draw = lambda: tuple(jnp.asarray(rng.standard_normal(dims)) for dims in ((5, 3), (5, 2)))
        at, step = draw(), draw()

        def loss(x_ND, gate_NK):
            rows_RD = jnp.sin(permute(x_ND, order_R, home_NK, implementation=implementation))
            y_ND = unpermute(rows_RD, order_R, home_NK, gate_NK, implementation=implementation)
            return jnp.sum(jnp.cos(y_ND))

        slope = lambda *at: sum(map(jnp.vdot, jax.grad(loss, (0, 1))(*at), step))
        for f in (loss, slope):
            moved = lambda size, f=f: f(*(x + size * d for x, d in zip(at, step, strict=True)))
            along = sum(map(jnp.vdot, jax.jit(jax.grad(f, (0, 1)))(*at), step))
            np.testing.assert_allclose(along, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-7)


@interpreted_nightly
@pytest.mark.parametrize("slots_in_axes", [None, 0], ids=["shared_slots", "own_slots"])
def test_vmap(implementation, slots_in_axes):
    shape = shapes.TINY[0]
    slots = [sorted_slots(shape, seed) for seed in range(2)]
    drawings = [drawn(shape, home_NK, len(order_R), seed) for seed, (order_R, home_NK) in enumerate(slots)]
    if slots_in_axes is None:
        slots = [slots[0]] * 2
        drawings = [drawn(shape, slots[0][1], len(slots[0][0]), seed) for seed in range(2)]
    args = [
        (x, rows, *map(jnp.asarray, own), gate) for (x, rows, gate), own in zip(drawings, slots, strict=True)
    ]
    run = there_and_back(implementation)
    stacked = [jnp.stack(parts) for parts in zip(*args, strict=True)]
    if slots_in_axes is None:
        stacked[2:4] = args[0][2:4]
    batched = jax.vmap(run, (0, 0, slots_in_axes, slots_in_axes, 0))(*stacked)
    for i, one in enumerate(args):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, jax.tree.map(lambda x, i=i: x[i], batched), run(*one))


@interpreted_nightly
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_tokens_split_over_devices(implementation, axis_type):
    """Every device has tokens and slots of its own, in value and gradient; gates are the same on all."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(axis_type,))
    shape = PermuteShape("part", N=6, K=2, D=4, E=3)
    slots = [sorted_slots(shape, seed) for seed in range(4)]
    gate_NK = np.random.default_rng(0).random((6, 2)).astype(np.float32)
    x_ND = jax.random.normal(jax.random.key(0), (24, 4))
    order_R, home_NK = (np.concatenate(parts) for parts in zip(*slots, strict=True))

    def part(x_ND, order_R, home_NK, gate_NK):
        rows_RD = permute(x_ND, order_R, home_NK, implementation=implementation)
        return unpermute(jnp.sin(rows_RD), order_R, home_NK, gate_NK, implementation=implementation)

    split = jax.shard_map(
        part, mesh=mesh, in_specs=(P("data"),) * 3 + (P(),), out_specs=P("data"), check_vma=True
    )
    put = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, P(*axes)))
    x, order, home, gate = put(x_ND, "data"), put(order_R, "data"), put(home_NK, "data"), put(gate_NK)
    y_ND, pull = jax.vjp(jax.jit(lambda x, gate: split(x, order, home, gate)), x, gate)
    d_x_ND, d_gate_NK = pull(jax.tree.map(jnp.ones_like, y_ND))
    x_ND, y_ND, d_x_ND, d_gate_wanted_NK = *map(np.asarray, (x_ND, y_ND, d_x_ND)), 0
    for p, (_, home_NK) in enumerate(slots):
        x_nD, there_NK = x_ND[6 * p : 6 * p + 6].astype(np.float64), home_NK < 12
        count_N = np.sum(np.where(there_NK, gate_NK, 0), axis=1, keepdims=True)
        assert_close(y_ND[6 * p : 6 * p + 6], count_N * np.sin(x_nD), 4)
        assert_close(d_x_ND[6 * p : 6 * p + 6], count_N * np.cos(x_nD), 4)
        d_gate_wanted_NK += there_NK * np.sum(np.sin(x_nD), axis=1, keepdims=True)
    assert_close(d_gate_NK, d_gate_wanted_NK, 16)


def test_what_does_not_fit_is_refused():
    x_ND, order_R, home_NK = jnp.ones((2, 3)), jnp.arange(4), jnp.arange(4).reshape(2, 2)
    with pytest.raises(ValueError, match=r"x is \(3, 3\).*expected \[N, D\]"):
        permute(jnp.ones((3, 3)), order_R, home_NK)
    with pytest.raises(ValueError, match=r"rows is \(2, 3\).*expected \[R, D\]"):
        unpermute(x_ND, order_R, home_NK)
    with pytest.raises(ValueError, match="one gate per slot"):
        unpermute(jnp.ones((4, 3)), order_R, home_NK, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="'fast' is not one of"):
        permute(x_ND, order_R, home_NK, implementation="fast")
