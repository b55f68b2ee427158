"""The TPU kernels: their visits, what they refuse, and blocks that reach past the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # knows of races
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import grouped_matmul
from pallas_kernels.errors import NotServedError
from pallas_kernels.grouped_matmul import tpu, tpu_tiles
from pallas_kernels.grouped_matmul.shapes import GroupedShape
from pallas_kernels.testing import assert_close, draw, oracle_matmul, oracle_outer, poison


def bounds(size_G, offset: int = 0):
    """First and end rows of the groups from `offset` on."""
    end_G = np.cumsum(size_G, dtype=np.int32)
    return jnp.asarray(end_G - size_G, jnp.int32)[offset:], jnp.asarray(end_G)[offset:]


def test_visits_of_three_tiles_by_hand():
    """Rows 0 0 0 1 | 1 1 1 1 | 1 2 2 . in tiles of four: five visits, and no spare one."""
    visits = tpu.visit_tiles(*bounds([3, 6, 2]), num_rows=12, rows=4)
    assert visits.tile_V.tolist() == [0, 0, 1, 2, 2]
    assert visits.group_V.tolist() == [0, 1, 1, 1, 2]
    assert visits.start_V.tolist() == [0, 3, 0, 0, 1]
    assert visits.end_V.tolist() == [3, 4, 4, 1, 3]


def test_tiles_of_nobody_are_visited_and_not_fetched():
    """Only group 1 is held, rows 5 to 7 of 16: the other tiles get zeros, the last visit is a spare one."""
    visits = tpu.visit_tiles(*bounds([5, 2, 0], offset=1), num_rows=16, rows=4)
    assert visits.tile_V.tolist() == [0, 1, 2, 3, 3]
    assert visits.group_V.tolist() == [0] * 5  # of the matrices that are held; no empty group's is fetched
    assert visits.read_V.tolist() == [1] * 5
    assert (visits.end_V - visits.start_V).tolist() == [0, 2, 0, 0, 0]


def test_every_group_is_visited_for_its_outer_product():
    visits = tpu.visit_groups(*bounds([0, 5, 0]), num_rows=8, rows=4)
    assert visits.group_V.tolist() == [0, 1, 1, 2]
    assert visits.read_V.tolist() == [0, 0, 1, 1]
    assert (visits.end_V - visits.start_V).tolist() == [0, 4, 1, 0]


walks = {walk: jax.jit(walk, static_argnums=(2, 3)) for walk in (tpu.visit_tiles, tpu.visit_groups)}


@settings(max_examples=200)
@given(st.sampled_from([(96, 8), (5, 8), (40, 1)]), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_every_row_of_a_group_is_in_one_visit(shape, seed, offset):
    num_rows, num_groups = shape
    rng = np.random.default_rng(seed)
    share_G = rng.dirichlet(np.full(num_groups, 0.3))
    start_G, end_G = bounds(rng.multinomial(rng.integers(0, num_rows + 1), share_G), offset % num_groups)
    for walk in walks:
        visits = tpu.Visits(*map(np.asarray, walks[walk](start_G, end_G, num_rows, 8)))
        counted = np.zeros((len(start_G), num_rows), int)
        for group, tile, start, end in zip(*visits[:4], strict=True):
            counted[group, 8 * tile + start : 8 * tile + end] += 1
        row_M = np.arange(num_rows)
        held = (row_M >= np.asarray(start_G)[:, None]) & (row_M < np.asarray(end_G)[:, None])
        np.testing.assert_array_equal(counted, held)
        in_order, everything = (
            (visits.tile_V, -(-num_rows // 8)) if walk is tpu.visit_tiles else (visits.group_V, len(start_G))
        )
        assert (np.diff(in_order) >= 0).all()  # a block of the result is left only when it is done
        assert set(in_order) == set(range(everything))
        assert set(visits.read_V) <= set(range(-(-num_rows // 8)))


def test_what_a_tpu_lacks():
    operands = jnp.ones((4, 2), jnp.float16), jnp.ones((1, 2, 3), jnp.float16), jnp.array([4])
    with pytest.raises(NotServedError, match=r"bfloat16 and float32, not float16; .*'xla_tiles' can"):
        grouped_matmul(*operands, implementation="tpu")
    assert refused(num_groups=2**15) == "the visits of 1048576 rows in 32768 groups do not fit in SMEM"
    assert refused(num_groups=256) is None


def refused(num_groups: int) -> str | None:
    lhs_MK = jax.ShapeDtypeStruct((2**20, 8), jnp.bfloat16)
    bound_G = jax.ShapeDtypeStruct((num_groups,), jnp.int32)
    return tpu.refusal("outer", lhs_MK, lhs_MK, bound_G, bound_G, dtype=jnp.float32)


@pytest.fixture
def two_cores(monkeypatch):
    """An interpreter in which two cores share the tiles of the result, in random order."""
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: tpu_tiles.Tiles(16, 128, 128))
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=0)
    with pltpu.force_tpu_interpret_mode(params):
        yield


@pytest.mark.parametrize("product", ["matmul", "transposed", "outer"])
def test_no_width_is_a_multiple_of_its_tile(two_cores, product):
    """The last blocks reach past the arrays, where the interpreter has NaN; so have the rows of nobody."""
    shape, size_G = GroupedShape("off", M=75, K=300, N=200, G=4), [10, 0, 20, 13]
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape)
    lhs_MK, cotangent_MN = poison(lhs_MK, size_G), poison(cotangent_MN, size_G)
    if product == "outer":
        run = jax.jit(lambda *operands: tpu.outer(*operands, jnp.float32))
        out, expected = run(lhs_MK, cotangent_MN, *bounds(size_G)), oracle_outer(lhs_MK, cotangent_MN, size_G)
    else:
        transposed = product == "transposed"
        run = jax.jit(lambda *operands: tpu.matmul(*operands, transpose_rhs=transposed, dtype=jnp.float32))
        rhs = jnp.swapaxes(rhs_GKN, 1, 2) if transposed else rhs_GKN
        out, expected = run(lhs_MK, rhs, *bounds(size_G)), oracle_matmul(lhs_MK, rhs_GKN, size_G)
    assert_close(out, expected, terms=300)
    assert not interpreter.races.races_found
