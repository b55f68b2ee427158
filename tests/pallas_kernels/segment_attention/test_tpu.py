"""The TPU kernels: their walks, blocks and refusals, and races between cores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # knows of races
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import segment_attention
from pallas_kernels.errors import NotServedError
from pallas_kernels.segment_attention import shapes, tpu, tpu_blocks
from pallas_kernels.segment_attention.blocks import Walk, key_walks, query_walks
from pallas_kernels.segment_attention.shapes import AttentionShape
from pallas_kernels.segment_attention.tpu_blocks import Blocks, Problem
from pallas_kernels.testing import assert_attention_close, draw_attention, oracle_attention
from pallas_kernels.tpu_chips import Chip
from tests.pallas_kernels import interpreters

V5E = Chip(flops=197e12, bandwidth=8.2e11, vmem=128 * 2**20, mxu=128)


walks_of = {walk: jax.jit(walk, static_argnums=(1, 2, 3)) for walk in (query_walks, key_walks)}


@settings(max_examples=10)
@given(st.integers(1, 300), st.sampled_from([(16, 32), (64, 16)]), st.sampled_from([1, 17, 50, 200]))
def test_the_grid_is_as_long_as_the_longest_walk(seed, sizes, window):
    """A walk longer than the grid would lose blocks."""
    blocks, T = Blocks(*sizes), 192
    rng = np.random.default_rng(seed)
    segment_BT = shapes.packed(T, int(rng.integers(1, 2 * T)), seed=seed)[None]
    for walks, longest in (
        (query_walks, max(blocks.walks(T, window))),
        (key_walks, max(blocks.walks_back(T, window))),
    ):
        walk = Walk(*np.moveaxis(np.asarray(walks_of[walks](segment_BT, *sizes, window)), 2, 0))
        assert (walk.end - walk.first <= longest).all()
        assert (walk.end > walk.first).all()  # nobody's block is visited too: to write zeros


def test_walks_by_hand():
    """Queries 16 to 31 with a window of 17 see keys 0 to 31: two blocks of 16; one key more needs a third."""
    assert Blocks(16, 16).walks(64, 17) == [1, 2, 2, 2]
    assert Blocks(16, 16).walks(64, 18) == [1, 2, 3, 3]
    assert Blocks(16, 32).walks(64, None) == [1, 1, 2, 2]
    assert Blocks(16, 32).walks_back(64, None) == [4, 2]  # keys 32 to 63 are seen by queries 32 to 63
    assert Blocks(16, 32).walks_back(96, 2) == [3, 3, 2]


def test_blocks_of_published_models():
    """Tall blocks where all keys are seen, and low ones where a window is."""
    problem = lambda shape: Problem(
        shape.B, shape.T, shape.G, shape.H // shape.G, shape.A, shape.value_width, shape.window, 2
    )
    chosen = {shape.name: tpu_blocks.choose(problem(shape), V5E) for shape in shapes.PUBLISHED}
    assert chosen["gpt_oss_window"].keys < chosen["gpt_oss_full"].keys
    for shape in shapes.PUBLISHED:
        assert tpu_blocks.vmem(problem(shape), chosen[shape.name]) <= 0.75 * V5E.vmem


def test_what_a_tpu_lacks():
    def refused(H=2, G=1, A=64, B=1, T=128, dtype=jnp.bfloat16):
        of = lambda *dims: jax.ShapeDtypeStruct(dims, dtype)
        segments = jax.ShapeDtypeStruct((B, T), jnp.int32)
        k = of(B, T, G, A)
        return tpu.refusal("forward", of(B, T, H, A), k, k, segments, window=None, scale=1.0)

    assert refused() is None
    assert refused(A=257) == "heads are 257 wide, and its blocks take at most 256"
    assert "64 query heads share a key/value head, and its blocks take at most 32" in refused(H=64)
    assert "do not fit in SMEM" in refused(B=2**14, T=129)
    ones = jnp.ones((1, 4, 2, 8), jnp.float16)
    with pytest.raises(NotServedError, match=r"bfloat16 and float32, not float16; .*'xla_chunks' can"):
        segment_attention(ones, ones, ones, jnp.ones((1, 4), int), implementation="tpu")


@pytest.fixture
def two_cores(monkeypatch):
    """An interpreter in which two cores share the blocks, in random order."""
    monkeypatch.setattr(tpu_blocks, "choose", lambda *_: Blocks(queries=16, keys=32))
    monkeypatch.setattr(tpu_blocks, "SCORES", 16 * 32)  # two heads: parts of 16 keys
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=0)
    with interpreters.pallas_calls(params):
        yield


@pytest.mark.nightly
def test_no_races(two_cores):
    shape = AttentionShape("off", B=1, T=40, H=2, G=1, A=70, C=20, window=20)
    segment_BT = shapes.packed(shape.T, 15)[None]
    q, k, v, d_o = draw_attention(shape, segment_BT)

    @jax.jit
    def run(q, k, v, d_o):
        op = lambda *qkv: segment_attention(*qkv, segment_BT, window=shape.window, implementation="tpu")
        o, backward = jax.vjp(op, q, k, v)
        return o, *backward(d_o)

    o, _, *slopes = oracle_attention(q, k, v, segment_BT, d_o, shape.window)
    for actual, expected in zip(run(q, k, v, d_o), (o, *slopes), strict=True):
        assert_attention_close(actual, expected)
    assert not interpreter.races.races_found
