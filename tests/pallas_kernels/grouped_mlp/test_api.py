"""What every implementation of gated grouped networks must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import grouped_mlp
from pallas_kernels.grouped_mlp import api
from pallas_kernels.grouped_swiglu.shapes import TINY, SwigluShape
from pallas_kernels.testing import group_rows
from tests.pallas_kernels.grouped_swiglu import oracles
from tests.pallas_kernels.grouped_swiglu import test_api as swiglu

EVERYWHERE = tuple(name for name, module in api.IMPLEMENTATIONS.items() if module.PLATFORM is None)
implementations = pytest.mark.parametrize("implementation", [*EVERYWHERE, "gpu"])  # the latter is composed


def oracle(rows_RD, gate_GDF, up_GDF, down_GFD, d_y_RD, size_G, activation="silu"):
    """(y, d_rows, d_gate, d_up, d_down) in float64; reads no row outside the groups."""
    rows_RD, gate_GDF, up_GDF, down_GFD, d_y_RD = (
        np.asarray(x, np.float64) for x in (rows_RD, gate_GDF, up_GDF, down_GFD, d_y_RD)
    )
    d_h_RF = np.zeros((len(rows_RD), gate_GDF.shape[2]))
    groups = group_rows(size_G, 0, len(gate_GDF))
    for down_FD, rows in zip(down_GFD, groups, strict=True):
        d_h_RF[rows] = d_y_RD[rows] @ down_FD.T
    h_RF, *slopes = oracles.oracle((rows_RD, gate_GDF, up_GDF, d_h_RF), size_G, activation)
    y_RD, d_down_GFD = np.zeros_like(d_y_RD), np.zeros_like(down_GFD)
    for g, rows in enumerate(groups):
        y_RD[rows], d_down_GFD[g] = h_RF[rows] @ down_GFD[g], h_RF[rows].T @ d_y_RD[rows]
    return y_RD, *slopes, d_down_GFD


@functools.cache
def value_and_gradients(implementation, activation="silu", keep=True):
    """A jitted (x, gate, up, down, d_y, slots, sizes) -> (y, dx, d_gate, d_up, d_down)."""

    @jax.jit
    def run(x_ND, gate_GDF, up_GDF, down_GFD, d_y_RD, slots, size_G):
        how = {"slots": slots, "activation": activation, "keep": keep, "implementation": implementation}
        op = lambda *floats: grouped_mlp(*floats, size_G, **how)
        y_RD, pull = jax.vjp(op, x_ND, gate_GDF, up_GDF, down_GFD)
        return y_RD, *pull(d_y_RD)

    return run


def drawn(shape: SwigluShape, size_G, dtype=jnp.float32, seed=0):
    """(x, gate, up, down, d_y); gradients of rows in no group are NaN."""
    x_ND, gate_GDF, up_GDF, _ = swiglu.drawn(shape, size_G, dtype, seed)
    rng = np.random.default_rng(seed + 1)
    down_GFD = rng.standard_normal((shape.G, shape.F, shape.D)) * max(shape.F, 1) ** -0.5
    d_y_RD = rng.standard_normal((shape.N * shape.K, shape.D))
    d_y_RD[np.sum(size_G) :] = np.nan
    return x_ND, gate_GDF, up_GDF, jnp.asarray(down_GFD, dtype), jnp.asarray(d_y_RD, dtype)


def check(implementation, shape, seed=0, dtype=jnp.float32, **how):
    """Compare with the oracle, of tokens in slots; absent tokens and foreign gradients are NaN."""
    (order_R, home_NK), size_G = swiglu.slots_and_sizes(shape, seed)
    x_ND, *others = drawn(shape, size_G, dtype, seed)
    x_ND = jnp.where((home_NK < len(order_R)).any(1)[:, None], x_ND, jnp.nan)
    slots = jnp.asarray(order_R), jnp.asarray(home_NK)
    actual = value_and_gradients(implementation, **how)(x_ND, *others, slots, size_G)
    rows_RD = np.asarray(x_ND, np.float64)[order_R // shape.K]
    y_RD, d_rows_RD, *rest = oracle(rows_RD, *others, size_G, how.get("activation", "silu"))
    d_x_ND = np.concatenate([d_rows_RD, np.zeros_like(d_rows_RD[:1])])[home_NK].sum(1)
    assert np.all(np.asarray(actual[0])[np.sum(size_G) :] == 0)
    for got, wanted in zip(actual, (y_RD, d_x_ND, *rest), strict=True):
        assert got.dtype == dtype
        swiglu.assert_near(got, wanted, dtype)


@implementations
def test_two_rows_by_hand(implementation):
    """relu(1 * 10) * (1 * 2) * 3 = 60; the second row belongs to nobody."""
    one = lambda value: jnp.full((1, 1, 1), value)
    floats = jnp.array([[1.0], [jnp.nan]]), one(10.0), one(2.0), one(3.0), jnp.array([[1.0], [jnp.nan]])
    run = value_and_gradients(implementation, "relu")
    y_RD, d_x_RD, *d_weights = run(*floats, None, jnp.array([1]))
    np.testing.assert_array_equal(y_RD, [[60.0], [0.0]])
    np.testing.assert_array_equal(d_x_RD, [[120.0], [0.0]])
    assert [float(d[0, 0, 0]) for d in d_weights] == [6.0, 30.0, 20.0]


@implementations
@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_equals_the_oracle(implementation, shape):
    check(implementation, shape)


@implementations
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_computed_again(implementation, activation):
    check(implementation, TINY[0], keep=False, activation=activation)


@implementations
def test_bfloat16(implementation):
    check(implementation, SwigluShape("wide", N=20, K=2, D=128, F=16, G=3), dtype=jnp.bfloat16)


@pytest.mark.parametrize("implementation", EVERYWHERE)
@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_any_slots(implementation, seed):
    check(implementation, TINY[0], seed)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@settings(max_examples=40)
@given(data=st.data())
def test_any_shape(implementation, data):
    limits = {"N": (1, 40), "K": (1, 5), "D": (1, 20), "F": (1, 20), "G": (1, 12)}
    dims = {name: data.draw(st.integers(*limit)) for name, limit in limits.items()}
    first = data.draw(st.integers(0, 2**31))
    for seed in range(first, first + 25):
        check(implementation, SwigluShape("any", **dims), seed)


@pytest.mark.parametrize(
    "implementation",
    ["xla_tiles", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("gpu", "reference"))],
)
def test_first_and_second_derivatives_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        shape = SwigluShape("tiny", N=6, K=2, D=3, F=2, G=3)
        slots, size_G = swiglu.slots_and_sizes(shape)
        at, step = (drawn(shape, size_G, jnp.float64, seed)[:4] for seed in range(2))
        op = functools.partial(grouped_mlp, slots=slots, implementation=implementation)
        loss = jax.jit(lambda *floats: jnp.sum(jnp.sin(op(*floats, size_G))))
        slope = jax.jit(lambda *floats: sum(map(jnp.vdot, jax.grad(loss, (0, 1, 2, 3))(*floats), step)))
        for f in (loss, slope):
            moved = lambda size, f=f: f(*(x + size * d for x, d in zip(at, step, strict=True)))
            along = sum(map(jnp.vdot, jax.jit(jax.grad(f, (0, 1, 2, 3)))(*at), step))
            np.testing.assert_allclose(along, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_gated_rows_are_never_there_as_a_whole(keep):
    """Beside what is kept, no array of a backward pass is as large as the gated rows."""
    R, D, F, G = 512, 24, 200, 4
    floats = [jnp.zeros(dims) for dims in ((R, D), (G, D, F), (G, D, F), (G, F, D))]
    run = value_and_gradients("xla_tiles", keep=keep)
    text = run.lower(*floats, jnp.zeros((R, D)), None, jnp.zeros(G, jnp.int32)).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    whole = entry.count(f"= f32[{R},{F}]")
    assert f"f32[{R},{D}]" in entry and (whole > 0) == keep


def test_shapes_that_do_not_fit():
    floats = jnp.ones((4, 2)), jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3))
    with pytest.raises(ValueError, match=r"down is \(1, 2, 3\); expected \[G, D, F\] and \[G, F, D\]"):
        grouped_mlp(*floats, jnp.array([4]))
