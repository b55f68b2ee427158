"""The Hopper kernels on a model of the chip: their schedule, few rows, off-tile widths, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import grouped_matmul
from pallas_kernels.errors import NotServedError
from pallas_kernels.grouped_matmul import gpu, gpu_schedule
from pallas_kernels.grouped_matmul.shapes import GroupedShape
from pallas_kernels.testing import assert_close, draw, oracle_matmul, oracle_outer, poison
from tests.pallas_kernels import topologies
from tests.pallas_kernels.grouped_matmul.small_hopper import small_hopper


def bounds(size_G, offset: int = 0):
    """First and end rows of the groups from `offset` on."""
    end_G = np.cumsum(size_G, dtype=np.int32)
    return jnp.asarray(end_G - size_G, jnp.int32)[offset:], jnp.asarray(end_G)[offset:]


@pytest.fixture
def chip():
    with small_hopper():
        yield


def run(product: str, shape, size_G, dtype=jnp.float32):
    """A product of the kernels and of the oracle, with NaN in the rows of nobody."""
    lhs_MK, rhs_GKN, cotangent_MN = draw(shape, dtype=jnp.bfloat16)
    lhs_MK, cotangent_MN = poison(lhs_MK, size_G), poison(cotangent_MN, size_G)
    if product == "outer":
        out = jax.jit(functools.partial(gpu.outer, dtype=dtype))(lhs_MK, cotangent_MN, *bounds(size_G))
        return out, oracle_outer(lhs_MK, cotangent_MN, size_G)
    rhs = jnp.swapaxes(rhs_GKN, 1, 2) if product == "transposed" else rhs_GKN
    multiply = functools.partial(gpu.matmul, transpose_rhs=product == "transposed", dtype=dtype)
    return jax.jit(multiply)(lhs_MK, rhs, *bounds(size_G)), oracle_matmul(lhs_MK, rhs_GKN, size_G)


products = pytest.mark.parametrize("product", ["matmul", "transposed", "outer"])
SIZES = {
    "off every tile": [130, 0, 70, 3],
    "less than a part each": [1, 7, 63, 8],
    "nobody": [0, 0, 0, 0],
    "on every tile": [128, 64, 0, 64],
    "all rows": [0, 300, 0, 0],
}


def sizes(every_change: tuple[str, ...]) -> list:
    """A parameter per case; most are for the night."""
    marks = lambda name: () if name in every_change else pytest.mark.nightly
    return [pytest.param(size_G, marks=marks(name), id=name) for name, size_G in SIZES.items()]


@products
@pytest.mark.parametrize("size_G", sizes(every_change=("off every tile",)))
def test_equals_the_oracle(chip, product, size_G):
    shape = GroupedShape("off", M=304, K=128, N=192, G=4)
    assert_close(*run(product, shape, size_G), terms=300)


@pytest.mark.nightly
@products
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_results_of_two_bytes(chip, product, dtype):
    shape = GroupedShape("one", M=72, K=64, N=64, G=2)
    assert_close(*run(product, shape, [66, 2], dtype), terms=70)


def test_row_tiles_by_hand():
    """Rows . 0 0 0 0 0 2 2 . . in tiles of two: nobody's, three of group 0, one of group 2, nobody's."""
    start_G, end_G = bounds([1, 5, 0, 2], offset=1)
    tiles = gpu_schedule.row_tiles(start_G, end_G, num_rows=10, rows=2)
    assert tiles.count.tolist() == [6]
    assert tiles.first_T[:6].tolist() == [0, 1, 3, 5, 6, 8]
    assert tiles.end_T[:6].tolist() == [1, 6, 6, 6, 8, 10]
    assert tiles.group_T[:6].tolist() == [-1, 0, 0, 0, 2, -1]


@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_every_row_is_in_one_tile(seed, offset):
    num_rows, rng = 300, np.random.default_rng(seed)
    size_G = rng.multinomial(rng.integers(0, num_rows + 1), rng.dirichlet(np.full(8, 0.3)))
    start_G, end_G = map(np.asarray, bounds(size_G, offset))
    tiles = jax.jit(gpu_schedule.row_tiles, static_argnums=(2, 3))(start_G, end_G, num_rows, 16)
    group_M = np.full(num_rows, -2)
    for first, start, end, group in np.stack(tiles[1:], axis=1)[: tiles.count[0]]:
        assert start <= first < end and (group < 0 or (start, end) == (start_G[group], end_G[group]))
        mine = slice(first, min(first + 16, end))
        assert (group_M[mine] == -2).all()
        group_M[mine] = group
    row_M = np.arange(num_rows)
    expected = np.full(num_rows, -1)
    for group, (start, end) in enumerate(zip(start_G, end_G, strict=True)):
        expected[(row_M >= start) & (row_M < end)] = group
    np.testing.assert_array_equal(group_M, expected)


@pytest.mark.parametrize(("num_tiles", "columns"), [(5, 3), (16, 1), (40, 7)])
def test_bands_reach_every_tile_of_every_column(num_tiles, columns):
    items = [gpu_schedule.in_bands(jnp.int32(i), num_tiles, columns) for i in range(num_tiles * columns)]
    assert len({(int(tile), int(column)) for tile, column in items}) == num_tiles * columns
    assert max(int(tile) for tile, _ in items) == num_tiles - 1


@pytest.mark.parametrize(
    ("width", "dtype", "why"),
    [(72, jnp.bfloat16, "multiples of 64, not 72"), (64, jnp.float32, "bfloat16 and float16, not float32")],
)
def test_what_it_refuses(width, dtype, why):
    operands = jnp.ones((8, 64), dtype), jnp.ones((1, 64, width), dtype), jnp.array([4])
    with pytest.raises(NotServedError, match=why):
        grouped_matmul(*operands, implementation="hopper")


def test_rows_come_in_eights():
    operands = jnp.ones((12, 64), jnp.bfloat16), jnp.ones((1, 64, 64), jnp.bfloat16), jnp.array([12])
    with pytest.raises(NotServedError, match="multiple of 8, not 12"):
        grouped_matmul(*operands, implementation="hopper")


def test_other_gpus_are_refused():
    shape, bound = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1,), jnp.int32)
    with jax.sharding.use_abstract_mesh(topologies.abstract_gpus("a100")):
        assert "need a Hopper GPU" in gpu.refusal("outer", shape, shape, bound, bound, dtype=jnp.bfloat16)
