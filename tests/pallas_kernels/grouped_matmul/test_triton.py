"""The portable GPU kernels: pieces, the order of tiles, what they refuse, how they are lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import grouped_matmul
from pallas_kernels.errors import NotServedError
from pallas_kernels.grouped_matmul import triton, triton_tiles
from pallas_kernels.grouped_matmul.shapes import TINY, GroupedShape
from pallas_kernels.testing import assert_close, draw, oracle_matmul, oracle_outer, poison
from tests.pallas_kernels import interpreters, topologies

# jax means to give up this form of Pallas one day; until then it is the one that every NVIDIA GPU has
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setattr(triton_tiles, "choose", lambda *_: triton_tiles.Tiles(16, 16, 16, warps=4, stages=2))
    with interpreters.pallas_calls():
        yield


def bounds(size_G, offset: int = 0):
    """First and end rows of the groups from `offset` on."""
    end_G = np.cumsum(size_G, dtype=np.int32)
    return jnp.asarray(end_G - size_G, jnp.int32)[offset:], jnp.asarray(end_G)[offset:]


def test_pieces_of_three_groups_by_hand():
    """Rows 0 0 0 1 1 1 1 1 1 2 2 . at most four at a time: five pieces, and one to spare."""
    pieces = triton.cut(*bounds([3, 6, 2]), num_rows=12, height=4)
    assert pieces.start_V.tolist()[:5] == [0, 3, 7, 9, 11]
    assert pieces.end_V.tolist()[:5] == [3, 7, 9, 11, 12]
    assert pieces.group_V.tolist()[:5] == [0, 1, 1, 2, 3]  # there is no group 3: nobody
    assert len(pieces.start_V) == 6 and pieces.start_V[5] == pieces.end_V[5]


cut = jax.jit(triton.cut, static_argnums=(2, 3))


@settings(max_examples=100)
@given(st.sampled_from([(96, 8), (5, 8), (40, 1)]), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_every_row_is_in_one_piece(shape, seed, offset):
    num_rows, num_groups = shape
    rng = np.random.default_rng(seed)
    share_G = rng.dirichlet(np.full(num_groups, 0.3))
    start_G, end_G = bounds(rng.multinomial(rng.integers(0, num_rows + 1), share_G), offset % num_groups)
    group_M = np.full(num_rows, -9)
    for start, end, group in zip(*map(np.asarray, cut(start_G, end_G, num_rows, 8)), strict=True):
        assert (group_M[start:end] == -9).all() and end - start <= 8
        group_M[start:end] = group if 0 <= group < len(start_G) else -1
    expected_M = np.full(num_rows, -1)
    for group, (start, end) in enumerate(zip(start_G, end_G, strict=True)):
        expected_M[start:end] = group
    np.testing.assert_array_equal(group_M, expected_M)


def test_rows_of_nobody_are_zero_and_not_read(interpreter):
    """Groups 2 to 4 of eight are held; the rows before and behind them hold NaN."""
    lhs_MK, rhs_GKN, right_MN = draw(TINY[0])
    held = ([9, 20, 0, 30, 1, 15, 0, 0], 2, 3)
    start_G, end_G = (x[:3] for x in bounds(*held[:2]))
    lhs_MK, right_MN = poison(lhs_MK, *held), poison(right_MN, *held)
    how = {"transpose_rhs": False, "dtype": jnp.float32}
    out_MN = triton.matmul(lhs_MK, rhs_GKN[:3], start_G, end_G, **how)
    assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN[:3], *held[:2]), TINY[0].K)
    out_GKN = triton.outer(lhs_MK, right_MN, start_G, end_G, jnp.float32)
    assert_close(out_GKN, oracle_outer(lhs_MK, right_MN, *held), TINY[0].M)


@pytest.mark.nightly
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_tiles(data):
    """Fifty draws of sizes and values for every shape and every tiles."""
    M, K, N, G = (data.draw(st.integers(1, most)) for most in (90, 40, 40, 9))
    tiles = triton_tiles.Tiles(*(data.draw(st.sampled_from([16, 32, 64])) for _ in range(3)), 4, 2)
    transpose_rhs = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = GroupedShape("any", M, K, N, G)
    with interpreters.pallas_calls(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_tiles, "choose", lambda *_: tiles)
        how = {"transpose_rhs": transpose_rhs, "dtype": jnp.float32}
        matmul = jax.jit(lambda *args: triton.matmul(*args, **how))
        outer = jax.jit(lambda *args: triton.outer(*args, jnp.float32))
        for seed in range(50):
            size_G = rng.multinomial(rng.integers(0, M + 1), rng.dirichlet(np.full(G, 0.5))).astype(np.int32)
            lhs_MK, rhs_GKN, right_MN = draw(shape, seed)
            lhs_MK, right_MN = poison(lhs_MK, size_G), poison(right_MN, size_G)
            rhs = jnp.swapaxes(rhs_GKN, 1, 2) if transpose_rhs else rhs_GKN
            out_MN = matmul(lhs_MK, rhs, *bounds(size_G))
            assert_close(out_MN, oracle_matmul(lhs_MK, rhs_GKN, size_G), K)
            assert_close(outer(lhs_MK, right_MN, *bounds(size_G)), oracle_outer(lhs_MK, right_MN, size_G), M)


def test_what_it_does_not_multiply():
    operands = jnp.ones((4, 2), jnp.int16), jnp.ones((1, 2, 3), jnp.int16), jnp.array([4])
    with pytest.raises(NotServedError, match=r"bfloat16, float16, float32, not int16; .*'xla_tiles' can"):
        grouped_matmul(*operands, implementation="triton")


def gradients(lhs_MK, rhs_GKN, size_G):
    out_MN, backward = jax.vjp(lambda *operands: grouped_matmul(*operands, size_G), lhs_MK, rhs_GKN)
    return out_MN, *backward(out_MN)


def test_it_is_the_default_on_other_gpus_than_hopper():
    """An exported program for an A100 has three of its kernels, made on a machine without any GPU."""
    shapes = (
        jax.ShapeDtypeStruct((75, 5), jnp.bfloat16),
        jax.ShapeDtypeStruct((8, 5, 7), jnp.bfloat16),
        jax.ShapeDtypeStruct((8,), jnp.int32),
    )
    with jax.sharding.use_abstract_mesh(topologies.abstract_gpus("a100")):
        exported = topologies.exported(gradients, *shapes)
    assert exported.mlir_module().count("xla.gpu.triton") == 3


def test_lowers_where_devices_hold_different_rows():
    """The interpreter of these kernels cannot: it knows nothing of manual axes."""

    def summed(lhs_MK, rhs_GKN, size_PG):
        op = lambda lhs, rhs, size: grouped_matmul(lhs, rhs, size[0])
        out_MN = jax.shard_map(op, in_specs=(P("row"), P(), P("row")), out_specs=P("row"), check_vma=True)(
            lhs_MK, rhs_GKN, size_PG
        )
        return jnp.sum(out_MN.astype(jnp.float32))

    mesh = topologies.abstract_gpus("a100", count=8)
    of = lambda shape, spec, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))
    rows, everywhere = P("row"), P()
    shapes = (
        of((48, 4), rows, jnp.bfloat16),
        of((2, 4, 3), everywhere, jnp.bfloat16),
        of((8, 2), rows, jnp.int32),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        exported = topologies.exported(jax.grad(summed, (0, 1)), *shapes)
    assert exported.mlir_module().count("xla.gpu.triton") == 2
