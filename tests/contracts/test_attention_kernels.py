"""What every implementation of segment attention must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import segment_attention, segment_attention_with_lse
from pallas_kernels.segment_attention import api, shapes, tpu_blocks, triton
from pallas_kernels.segment_attention.shapes import AttentionShape
from pallas_kernels.testing import assert_attention_close, draw_attention, oracle_attention
from tests.pallas_kernels import interpreters

# jax interprets these step by step; for every change they run what tells most. Hopper's kernels, for wide
# heads alone, are in tests/pallas_kernels/segment_attention/test_gpu.py.
COMPILED = ("xla_chunks", "reference")
INTERPRETED = tuple(name for name in api.IMPLEMENTATIONS if name not in (*COMPILED, "hopper"))
NIGHTLY = tuple(pytest.param(name, marks=pytest.mark.nightly) for name in ("reference", *INTERPRETED))
implementations = pytest.mark.parametrize("implementation", (*COMPILED, *INTERPRETED))
others_nightly = pytest.mark.parametrize("implementation", ("xla_chunks", *NIGHTLY))
tiny_shapes = pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)

# jax means to give up this form of Pallas one day; until then it is the one that every NVIDIA GPU has
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

SHORT = AttentionShape("short", B=2, T=21, H=4, G=2, A=4)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run the kernels of accelerators here, in many small blocks; what is unset is NaN."""
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls():
        patch.setattr(tpu_blocks, "choose", lambda *_: tpu_blocks.Blocks(queries=16, keys=32))
        patch.setattr(triton, "choose", lambda *_: triton.Tiles(queries=16, keys=32, warps=4, stages=1))
        yield


@functools.cache
def value_and_gradients(implementation: str, window: int | None = None, scale: float | None = None):
    """A jitted (q, k, v, segments, d_o, d_lse) -> (o, lse, d_q, d_k, d_v)."""

    @jax.jit
    def run(q, k, v, segment_BT, d_o, d_lse):
        static = {"window": window, "scale": scale, "implementation": implementation}
        op = lambda *qkv: segment_attention_with_lse(*qkv, segment_BT, **static)
        (o, lse), backward = jax.vjp(op, q, k, v)
        return o, lse, *backward((d_o, d_lse))

    return run


def check(implementation, shape, segment_BT, dtype=jnp.float32, seed=0, scale=None):
    """Compare value and gradients with the oracle, with NaN in all padding."""
    q, k, v, d_o = draw_attention(shape, segment_BT, seed, dtype)
    d_lse = np.random.default_rng(seed + 1).standard_normal((shape.B, shape.H, shape.T)).astype(np.float32)
    run = value_and_gradients(implementation, shape.window, scale)
    actual = run(q, k, v, jnp.asarray(segment_BT), d_o, d_lse)
    expected = oracle_attention(q, k, v, segment_BT, d_o, shape.window, scale, d_lse)
    assert [x.dtype for x in actual] == [dtype, jnp.float32, dtype, dtype, dtype]
    for one, other in zip(actual, expected, strict=True):
        assert_attention_close(one, other)


def packed_rows(shape, mean: int = 9) -> np.ndarray:
    return np.stack([shapes.packed(shape.T, mean, seed=row) for row in range(shape.B)])


@implementations
def test_three_tokens_by_hand(implementation):
    """Query 1 scores its keys log 3 and 0, so values 4 and 8 mix to 5; query 0 sees itself, 2 is padding."""
    q = jnp.ones((1, 3, 1, 4))
    k = jnp.array([np.log(3) / 2, 0.0, np.nan])[None, :, None, None] * jnp.ones((1, 1, 1, 4))
    v = jnp.array([4.0, 8.0, np.nan])[None, :, None, None]
    ones = jnp.ones((1, 3, 1, 1))
    run = value_and_gradients(implementation)
    o, lse, d_q, _, d_v = run(q, k, v, jnp.array([[7, 7, 0]]), ones, jnp.zeros((1, 1, 3)))
    np.testing.assert_allclose(o[0, :, 0, 0], [4.0, 5.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(lse[0, 0], [np.log(3), np.log(4), -np.inf], rtol=1e-6)
    np.testing.assert_allclose(d_v[0, :, 0, 0], [1.75, 0.25, 0.0], rtol=1e-6)
    # moving q by x moves the first score by x log(3) / 4 more than the other: 5 falls by 3/16 of 4 times that
    np.testing.assert_allclose(d_q[0, :, 0, 0], [0.0, -np.log(3) * 3 / 16, 0.0], rtol=1e-5, atol=1e-6)


@others_nightly
@tiny_shapes
def test_equals_the_oracle(implementation, shape):
    """Many segments, one, none."""
    for make in (lambda T: shapes.packed(T, mean=9), shapes.one, shapes.padding):
        check(implementation, shape, np.stack([make(shape.T)] * shape.B))


@implementations
def test_segments_of_all_kinds(implementation):
    """Long and short ones, a name that comes back, padding between them and behind, a row of padding."""
    segment_BT = np.zeros((3, 50), np.int32)
    segment_BT[0] = np.repeat([3, 1, 3, -4, 2], [20, 1, 7, 2, 20])
    segment_BT[1, 5:] = 9
    shape = AttentionShape("kinds", B=3, T=50, H=2, G=1, A=4, C=3, window=18)
    check(implementation, shape, segment_BT)


@others_nightly
@pytest.mark.parametrize(("H", "G", "window"), [(2, 2, 6), (4, 2, 1), (8, 1, None)])
def test_groups_and_windows(implementation, H, G, window):
    shape = AttentionShape("groups", B=1, T=19, H=H, G=G, A=4, window=window)
    check(implementation, shape, packed_rows(shape), scale=0.7)


@others_nightly
def test_bfloat16_accumulates_in_float32(implementation):
    shape = AttentionShape("bfloat16", B=1, T=40, H=2, G=1, A=64, window=25)
    check(implementation, shape, packed_rows(shape, mean=30), jnp.bfloat16)


@others_nightly
def test_scores_of_thousands_do_not_overflow(implementation):
    ones = jnp.ones((1, 9, 1, 4))
    args = (jnp.ones((1, 9), int), ones, jnp.zeros((1, 1, 9)))
    results = value_and_gradients(implementation, scale=1e4)(ones, ones, ones, *args)
    np.testing.assert_allclose(results[0], 1.0, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in results)


def any_segments(rng: np.random.Generator, shape) -> np.ndarray:
    """Mostly whole documents one after the other; sometimes any name anywhere."""
    if rng.random() < 0.2:
        return rng.integers(-1, 3, (shape.B, shape.T)).astype(np.int32)
    mean = int(rng.integers(1, 2 * shape.T))
    return np.stack([shapes.packed(shape.T, mean, seed=int(rng.integers(2**31))) for _ in range(shape.B)])


@others_nightly
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), window=st.sampled_from([None, 5]))
def test_any_segments(implementation, seed, window):
    shape = AttentionShape("short", B=2, T=21, H=4, G=2, A=4, window=window)
    check(implementation, shape, any_segments(np.random.default_rng(seed), shape), seed=seed % 1000)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@implementations
@settings(max_examples=20)
@given(data=st.data())
def test_any_shape(implementation, data):
    B, T, G, heads, A, C = (data.draw(st.integers(1, most)) for most in (3, 90, 3, 4, 9, 9))
    window = data.draw(st.sampled_from([None, 1, 7, 33]))
    shape = AttentionShape("any", B, T, G * heads, G, A, C, window)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for seed in range(50):
        check(implementation, shape, any_segments(rng, shape), seed=seed)


@others_nightly
def test_jit_equals_eager(implementation):
    segment_BT = packed_rows(SHORT)
    q, k, v, _ = draw_attention(SHORT, segment_BT)
    op = functools.partial(segment_attention, implementation=implementation)
    np.testing.assert_allclose(
        jax.jit(op)(q, k, v, segment_BT), op(q, k, v, segment_BT), rtol=1e-6, atol=1e-6
    )


@others_nightly
@pytest.mark.parametrize("under", ["scan", "vmap", "remat"])
def test_gradients_under_transformations(implementation, under):
    """Three steps q -> q + attention(q, k of the step, v): under `scan`, `remat`; or side by side: `vmap`."""
    segment_BT = jnp.asarray(packed_rows(SHORT))
    q, k, v, _ = (jnp.nan_to_num(x) for x in draw_attention(SHORT, segment_BT))
    k_LBTGA = jnp.stack([k, 2 * k, -k])
    step = lambda q, k: q + segment_attention(q, k, v, segment_BT, implementation=implementation)
    by_scan = lambda step: lambda q, k_L: jax.lax.scan(lambda q, k: (step(q, k), None), q, k_L)[0]
    looped = lambda q, k_L: functools.reduce(step, k_L, q)
    apart = lambda q, k_L: jnp.stack([step(q, k) for k in k_L])
    ways = {
        "scan": (by_scan(step), looped),
        "remat": (by_scan(jax.checkpoint(step)), looped),
        "vmap": (jax.vmap(step, (None, 0)), apart),
    }
    slopes = [jax.jit(jax.grad(lambda *x, f=f: jnp.sum(f(*x) ** 2), (0, 1)))(q, k_LBTGA) for f in ways[under]]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *slopes)


@others_nightly
def test_rows_and_heads_over_a_mesh(implementation):
    """Rows over four devices, heads over two; values and gradients are those of one device."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    shape = AttentionShape("mesh", B=4, T=18, H=4, G=2, A=4, window=11)
    segment_BT = packed_rows(shape)
    q, k, v, d_o = draw_attention(shape, segment_BT)
    d_lse = jnp.ones((shape.B, shape.H, shape.T))
    run = value_and_gradients(implementation, shape.window)
    expected = oracle_attention(q, k, v, segment_BT, d_o, shape.window, None, d_lse)
    with jax.set_mesh(mesh):
        put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
        rows = ("data", None, "tensor")
        args = (*(put(x, *rows) for x in (q, k, v)), put(segment_BT, "data"), put(d_o, *rows))
        actual = run(*args, put(d_lse, "data", "tensor"))
        assert all(jax.typeof(x).sharding.spec == P(*rows, None) for x in (actual[0], *actual[2:]))
    for one, other in zip(actual, expected, strict=True):
        assert_attention_close(one, other)


@pytest.mark.parametrize("implementation", COMPILED)
def test_finite_differences(implementation):
    with jax.enable_x64(True):
        shape = AttentionShape("float64", B=1, T=9, H=2, G=1, A=3, window=5)
        segment_BT = packed_rows(shape)
        q, k, v, d_o = (jnp.nan_to_num(x) for x in draw_attention(shape, segment_BT, dtype=jnp.float64))
        run = value_and_gradients(implementation, shape.window)
        d_lse = jnp.zeros((1, 2, 9))
        slopes = run(q, k, v, segment_BT, d_o, d_lse)[2:]
        loss = lambda *qkv: jnp.sum(run(*qkv, segment_BT, d_o, d_lse)[0] * d_o)
        for i, slope in enumerate(slopes):
            way = jax.random.normal(jax.random.key(i), slope.shape, jnp.float64)
            moved = [
                [x + sign * 1e-5 * way if j == i else x for j, x in enumerate((q, k, v))] for sign in (1, -1)
            ]
            difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-5
            np.testing.assert_allclose(jnp.sum(slope * way), difference, rtol=1e-7, atol=1e-9)
