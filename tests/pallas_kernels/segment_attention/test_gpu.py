"""The Hopper kernels of segment attention on a model of the chip; blocks that are walked over; refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.segment_attention import blocks, gpu, gpu_parts
from pallas_kernels.segment_attention.shapes import AttentionShape
from pallas_kernels.testing import assert_attention_close, draw_attention, oracle_attention
from tests.pallas_kernels import hopper


@pytest.fixture(autouse=True)
def chip():
    with hopper.mosaic_kernels():
        yield


def check(shape, segment_BT, seed: int = 0):
    """Compare both kernels with the oracle, with NaN in all padding."""
    q, k, v, d_o = draw_attention(shape, segment_BT, seed, jnp.bfloat16)
    static = {"window": shape.window, "scale": shape.A**-0.5}
    segment_BT = jnp.asarray(segment_BT)
    o, lse, kept = gpu.forward(q, k, v, segment_BT, **static)
    delta = jnp.swapaxes(jnp.sum(o.astype(jnp.float32) * d_o.astype(jnp.float32), axis=-1), 1, 2)
    gradients = gpu.backward(q, k, v, segment_BT, lse, delta, d_o, kept, **static)
    expected = oracle_attention(
        q, k, v, segment_BT, d_o, shape.window, None, jnp.zeros((shape.B, shape.H, shape.T))
    )
    for name, one, other in zip(
        ("o", "lse", "d_q", "d_k", "d_v"), (o, lse, *gradients), expected, strict=True
    ):
        seen = np.isfinite(other)
        assert (np.isfinite(one) == seen).all(), name
        assert_attention_close(jnp.where(seen, one, 0), np.where(seen, other, 0))


def any_segments(T: int, seed: int) -> np.ndarray:
    """Documents one after the other, or any name anywhere."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.3:
        return rng.integers(-1, 3, (1, T)).astype(np.int32)
    document_T = 1 + np.cumsum(rng.random(T) < 1 / rng.integers(2, 2 * T))
    return np.where(np.arange(T) < T - rng.integers(0, T // 2), document_T, 0)[None].astype(np.int32)


def test_walks_of_two_segments_by_hand():
    """Blocks of two: segments 1 1 | 1 2 | 2 2 | 2 .; a query block walks from its segment's first block."""
    segment_BT = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    walks = blocks.query_walks(segment_BT, 2, 2, None)
    assert walks[0].tolist() == [[0, 1, 0, 0], [0, 2, 0, 0], [1, 3, 0, 0], [1, 4, 0, 0]]
    walks = blocks.key_walks(segment_BT, 2, 2, None)
    assert walks[0].tolist() == [[0, 2, 0, 0], [1, 4, 0, 0], [2, 4, 0, 0], [3, 4, 0, 0]]


def test_full_blocks_by_hand():
    """One segment in four blocks of two: what is before the diagonal and in the window is full."""
    ones = jnp.ones((1, 8), jnp.int32)
    assert blocks.query_walks(ones, 2, 2, None)[0, 3].tolist() == [0, 4, 0, 3]
    assert blocks.query_walks(ones, 2, 2, 5)[0, 3].tolist() == [1, 4, 2, 3]


def test_equals_the_oracle():
    """Two heads of one group; a segment that ends in a tile, a gap, a window, padding, T off the tile."""
    segment_BT = np.repeat([[1, 2, 0, 2, 0]], [70, 90, 3, 20, 17], axis=1)
    check(AttentionShape("mixed", B=1, T=200, H=2, G=1, A=64, window=100), segment_BT)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("T", "H", "G", "A"), [(700, 1, 1, 64), (600, 2, 1, 128), (130, 4, 2, 64), (1, 1, 1, 128)]
)
def test_shapes(T, H, G, A):
    check(AttentionShape("whole", B=1, T=T, H=H, G=G, A=A), np.ones((1, T), np.int32))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@settings(max_examples=25)
@given(st.integers(1, 300), st.sampled_from([None, 1, 64, 130]), st.integers(0, 2**31))
def test_any_segments(T, window, seed):
    check(AttentionShape("any", B=1, T=T + 1, H=1, G=1, A=64, window=window), any_segments(T + 1, seed))


def test_a_fetch_that_does_not_wait_is_noticed(monkeypatch):
    monkeypatch.setattr(gpu_parts, "wait_for_room", lambda *_: None)
    monkeypatch.setattr(gpu, "FORWARD", {64: gpu.Tiles(64, 1)})
    q, k, v, _ = draw_attention(AttentionShape("one", B=1, T=256, H=1, G=1, A=64), np.ones((1, 256)), 0)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    with pytest.raises((AssertionError, jax.errors.JaxRuntimeError)):
        o, *_ = gpu.forward(q, k, v, jnp.ones((1, 256), int), window=None, scale=1.0)
        assert jnp.isfinite(o).all()


@pytest.mark.parametrize(
    ("dtype", "A", "scale", "why"),
    [
        (jnp.float32, 64, 1.0, "float32"),
        (jnp.bfloat16, 96, 1.0, "96 wide"),
        (jnp.bfloat16, 64, -1.0, "not positive"),
    ],
)
def test_refusals(dtype, A, scale, why):
    x = jax.ShapeDtypeStruct((1, 8, 1, A), dtype)
    refusal = functools.partial(gpu.refusal, "forward", x, x, x, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    assert why in refusal(window=None, scale=scale)
    x = jax.ShapeDtypeStruct((1, 8, 1, 64), jnp.bfloat16)
    assert gpu.refusal("forward", x, x, x, None, window=None, scale=1.0) is None
