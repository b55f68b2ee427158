"""The XLA chunks: which scores are computed, what is kept, and what a program takes."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis import flops
from pallas_kernels import segment_attention
from pallas_kernels.segment_attention import api, cpu, shapes
from pallas_kernels.segment_attention.cpu import Band
from pallas_kernels.segment_attention.shapes import AttentionShape


def test_bands_by_hand():
    assert cpu.bands(256, 4, None) == [Band(64 * i, 1, 64, 64 * (i + 1)) for i in range(4)]
    assert cpu.bands(100, 4, None) == [Band(0, 1, 64, 64), Band(64, 1, 36, 100)]  # the rest is a chunk too
    assert cpu.bands(5, 4, None) == [Band(0, 1, 5, 5)]
    assert cpu.bands(4096, 4, None)[1] == Band(512, 2, 256, 1024)
    assert cpu.bands(4096, 4, 128)[1] == Band(512, 8, 64, 191)  # 64 queries see 127 keys before the first


def test_many_heads_make_short_chunks():
    bands = cpu.bands(4096, 4 * 64, None)
    assert {band.queries * 4 * 64 * 4096 <= cpu.SCORE_BYTES or band.queries == 64 for band in bands} == {True}
    assert bands[1] == Band(512, 8, 64, 1024)


@given(st.integers(1, 5000), st.sampled_from([4, 2**10, 2**20]), st.none() | st.integers(1, 5000))
def test_every_query_is_in_one_chunk_with_all_that_it_sees(T, score_bytes, window):
    at = 0
    for band in cpu.bands(T, score_bytes, window):
        assert band.first == at
        for first in range(band.first, band.first + band.count * band.queries, band.queries):
            since = band.first_key(first)
            assert since <= max(0, first - (T if window is None else window) + 1)
            assert first + band.queries <= since + band.keys <= T
            at += band.queries
    assert at == T


def test_short_rows_keep_their_shares_and_long_ones_do_not():
    """Faster against memory that is linear in T."""
    kept = {
        T: jax.eval_shape(lambda T=T: cpu.forward(*drawn(T), window=None, scale=1.0))[2] for T in (512, 513)
    }
    assert len(kept[512]) == 8
    assert kept[513] is None


def test_programs_for_accelerators_keep_nothing(monkeypatch):
    """There the table offers a kernel and these chunks for one program, so both give the same tree."""
    monkeypatch.setattr(api.implementations, "platform", lambda: "tpu")
    assert jax.eval_shape(lambda: cpu.forward(*drawn(64), window=None, scale=1.0))[2] is None


def drawn(T: int):
    q, k = jnp.zeros((1, T, 2, 8)), jnp.zeros((1, T, 1, 8))
    return q, k, k, jnp.ones((1, T), jnp.int32)


def compiled(shape: AttentionShape):
    """The program of value and gradients."""
    B, T, H, G, A = shape.B, shape.T, shape.H, shape.G, shape.A

    def run(q, k, v, segment_BT, d_o):
        op = lambda *qkv: segment_attention(
            *qkv, segment_BT, window=shape.window, implementation="xla_chunks"
        )
        o, backward = jax.vjp(op, q, k, v)
        return o, *backward(d_o)

    of = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    q, k, segments = of(B, T, H, A), of(B, T, G, A), jax.ShapeDtypeStruct((B, T), jnp.int32)
    return jax.jit(run).lower(q, k, k, segments, q).compile()


@pytest.mark.parametrize(("window", "share"), [(None, 0.65), (256, 0.25)])
def test_what_nobody_sees_is_not_computed(window, share):
    """Forward 2 products, backward 5; at T = 2048, against all pairs of positions."""
    shape = AttentionShape("long", B=1, T=2048, H=2, G=1, A=64, window=window)
    dense = 7 * 2 * shape.H * shape.T**2 * shape.A
    counted = flops.count(compiled(shape))
    assert not counted.unknown_loops
    assert 0.1 * dense < counted.matmul_flops <= share * dense


@pytest.mark.parametrize("window", [None, pytest.param(256, marks=pytest.mark.nightly)])
def test_memory_is_linear_in_length(window):
    """All scores of a row of 4096 in four heads would take 268 MB, of one of 8192 four times that."""
    shape = lambda T: AttentionShape("long", B=1, T=T, H=4, G=2, A=16, window=window)
    temporary = {T: compiled(shape(T)).memory_analysis().temp_size_in_bytes for T in (4096, 8192)}
    assert temporary[4096] < 100e6
    assert temporary[8192] < 2.2 * temporary[4096]


def test_shapes_of_segments():
    assert shapes.packed(40, 8).min() == 0  # padding is behind
    assert (shapes.packed(40, 8)[:30] > 0).all()
    assert len(set(shapes.packed(400, 8))) > 20
