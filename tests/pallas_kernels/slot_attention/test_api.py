"""What every implementation of slot attention must satisfy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import slot_attention, write_pages
from pallas_kernels.errors import NotServedError
from pallas_kernels.slot_attention import api, cpu, shapes, tpu, triton
from pallas_kernels.slot_attention.shapes import SlotShape
from pallas_kernels.testing import assert_close
from tests.pallas_kernels import interpreters
from tests.pallas_kernels.slot_attention.cases import Case, any_chunks, of_chunks

INTERPRETED = ("tpu", "triton")  # step by step
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in INTERPRETED)
nightly = functools.partial(pytest.param, marks=pytest.mark.nightly)
NIGHTLY = tuple(map(nightly, INTERPRETED))
implementations = pytest.mark.parametrize("implementation", (*COMPILED, *INTERPRETED))
interpreted_nightly = pytest.mark.parametrize("implementation", (*COMPILED, *NIGHTLY))
invariant = pytest.mark.parametrize("implementation", ("xla_blocks", *INTERPRETED))
invariant_nightly = pytest.mark.parametrize("implementation", ("xla_blocks", *NIGHTLY))
GROUPED, WINDOW, MULTI_QUERY = shapes.TINY
LARGE = {name: getattr(cpu, name) for name in ("BLOCK_KEYS", "TILE_ROWS", "FEW_ROWS", "LONE_AT_ONCE")}
# decoding, a chunk, one that follows another of its slot, a slot twice, the last position there is
MIXED = [(0, 47, 1), (1, 0, 1), (2, 5, 9), (2, 30, 1), (3, 0, 5), (4, 7, 1)]


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Run all kernels here, in small tiles and blocks."""
    small = {
        cpu: {"BLOCK_KEYS": 16, "TILE_ROWS": 4, "FEW_ROWS": 1, "LONE_AT_ONCE": 3},
        tpu: {"BLOCK_KEYS": 16, "TILE_QUERIES": 32},
        triton: {"BLOCK_KEYS": {2: 16, 4: 16}, "TILE_QUERIES": {2: 16, 4: 16}},
    }
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls():
        for module, constants in small.items():
            for name, value in constants.items():
                patch.setattr(module, name, value)
        yield


@functools.cache
def attention(implementation: str, window: int | None = None, scale: float | None = None):
    return jax.jit(
        functools.partial(slot_attention, window=window, scale=scale, implementation=implementation)
    )


def attend(implementation: str, case: Case):
    return attention(implementation, case.shape.window)(*case.operands())


def check(implementation: str, case: Case) -> None:
    o_NHA = attend(implementation, case)
    assert o_NHA.dtype == case.dtype
    assert_close(o_NHA, case.oracle(), terms=case.shape.A)
    np.testing.assert_array_equal(np.asarray(o_NHA)[~case.live()], 0)


@implementations
def test_means_by_hand(implementation):
    """Keys of zero weigh alike, so that a row gets the mean of the values that it sees: 1, 2, 4 or less."""
    page_k_PGSA = jnp.full((2, 1, 8, 8), jnp.nan).at[1, :, :3].set(0)
    page_v_PGSA = page_k_PGSA.at[1, 0, :3].set(jnp.array([1.0, 2.0, 4.0])[:, None])
    slot_N, position_N, table_QJ = (
        jnp.array([0, 0, 0, -1, 1]),
        jnp.array([2, 0, 1, 0, 0]),
        jnp.array([[1, 9]]),
    )
    q_NHA = jnp.ones((5, 1, 8))
    operands = (q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, table_QJ)
    all_keys = attention(implementation)(*operands)[:, 0, 0]
    np.testing.assert_allclose(all_keys, [7 / 3, 1, 1.5, 0, 0], rtol=1e-6)
    last_two = attention(implementation, 2)(*operands)[:, 0, 0]
    np.testing.assert_allclose(last_two, [3, 1, 1.5, 0, 0], rtol=1e-6)


@implementations
@pytest.mark.parametrize("shape", (WINDOW, *map(nightly, (GROUPED, MULTI_QUERY))), ids=lambda of: of.name)
def test_equals_the_oracle(implementation, shape):
    check(implementation, of_chunks(shape, MIXED, rows=shape.N))


@interpreted_nightly
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(shapes.TINY))
def test_any_chunks(implementation, seed, shape):
    rng = np.random.default_rng(seed)
    check(implementation, of_chunks(shape, any_chunks(shape, rng), rows=shape.N, seed=seed))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@implementations
@settings(max_examples=50)
@given(data=st.data())
def test_any_shape(implementation, data):
    G, R, Q, J = (data.draw(st.integers(1, most)) for most in (3, 9, 5, 5))
    window = data.draw(st.none() | st.integers(1, 50))
    S, A, N = (
        data.draw(st.sampled_from([8, 16, 32])),
        data.draw(st.sampled_from([8, 20])),
        data.draw(st.integers(1, 20)),
    )
    shape = SlotShape("any", N=N, H=G * R, G=G, A=A, Q=Q, J=J, S=S, window=window)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for _ in range(20):
        check(implementation, of_chunks(shape, any_chunks(shape, rng), rows=N))


@interpreted_nightly
def test_nobody_is_there(implementation):
    check(implementation, of_chunks(GROUPED, [], rows=GROUPED.N))


@interpreted_nightly
def test_positions_beyond_the_table_are_inactive(implementation):
    capacity = GROUPED.J * GROUPED.S
    check(
        implementation,
        Case(GROUPED, np.zeros(24, np.int32), np.arange(capacity - 20, capacity + 4, dtype=np.int32)),
    )


@interpreted_nightly
def test_bfloat16(implementation):
    """Sums are in float32; kernels round each weight once before it meets its value, and weights sum to 1."""
    case = of_chunks(MULTI_QUERY, MIXED, rows=MULTI_QUERY.N, dtype=jnp.bfloat16)
    o_NHA = attend(implementation, case)
    assert o_NHA.dtype == jnp.bfloat16
    eps, largest = float(jnp.finfo(jnp.bfloat16).eps), np.abs(case.dense()[2].astype(np.float64)).max()
    np.testing.assert_allclose(np.asarray(o_NHA, np.float64), case.oracle(), rtol=eps, atol=eps / 2 * largest)


@interpreted_nightly
def test_scale(implementation):
    case = of_chunks(GROUPED, MIXED, rows=GROUPED.N)
    o_NHA = attention(implementation, None, 0.7)(*case.operands())
    assert_close(o_NHA, case.oracle(0.7), terms=GROUPED.A)


@invariant
def test_a_row_does_not_depend_on_the_others(implementation):
    """The last row of a prompt: alone, at any place among others, and as the end of any chunk."""
    at = lambda chunks: np.asarray(attend(implementation, of_chunks(WINDOW, chunks, rows=WINDOW.N)))
    alone = at([(2, 21, 1)])[0]
    others = [(0, 47, 1), (4, 13, 1), (3, 2, 6)]
    for before in range(4):
        chunks = [*others[:before], (2, 21, 1), *others[before:]]
        np.testing.assert_array_equal(at(chunks)[sum(length for *_, length in others[:before])], alone)
    for length in (2, 3, 5, 8):
        np.testing.assert_array_equal(at([others[0], (2, 22 - length, length), others[2]])[length], alone)


@invariant_nightly
def test_a_row_does_not_depend_on_how_many_rows_there_are(implementation):
    """A program of two rows and one of seventeen, with a chunk among them."""
    case = of_chunks(GROUPED, [(2, 40, 1), (3, 4, 1)], rows=2)
    few = np.asarray(attend(implementation, case))
    more = of_chunks(GROUPED, [(2, 40, 1), (3, 4, 1), (0, 1, 15)], rows=17)
    np.testing.assert_array_equal(np.asarray(attend(implementation, more))[:2], few)


@pytest.mark.parametrize("page_size", [16, nightly(128)])
@pytest.mark.parametrize(("H", "G"), [(9, 3), nightly(8, 2), nightly(5, 5)])
def test_blocks_as_large_as_they_are(monkeypatch, H, G, page_size):
    """Alone, in a batch and in a chunk, in blocks of the usual size: sums of other sizes take other ways."""
    for name, value in LARGE.items():
        monkeypatch.setattr(cpu, name, value)
    shape = SlotShape("large", N=64, H=H, G=G, A=64, Q=4, J=256 // page_size, S=page_size)
    attend = jax.jit(functools.partial(slot_attention, implementation="xla_blocks"))
    at = lambda chunks, rows: np.asarray(attend(*of_chunks(shape, chunks, rows=rows).operands()))
    batch = at([(2, 150, 1), *((slot % 4, 3 * slot, 1) for slot in range(60) if slot % 4 != 2)], 64)[0]
    np.testing.assert_array_equal(at([(2, 150, 1)], 1)[0], batch)
    np.testing.assert_array_equal(at([(2, 120, 64)], 64)[30], batch)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@invariant
def test_batches_of_one_to_sixteen(implementation):
    """Bit for bit, between programs too: a row at every place of every batch."""
    at = lambda chunks, rows: np.asarray(attend(implementation, of_chunks(WINDOW, chunks, rows=rows)))
    alone = at([(2, 21, 1)], 1)[0]
    for rows in range(1, 17):
        others = [(n % WINDOW.Q, 2 * n + 3, 1) for n in range(rows - 1)]
        for place in range(rows):
            batch = at([*others[:place], (2, 21, 1), *others[place:]], rows)
            np.testing.assert_array_equal(batch[place], alone)


@invariant_nightly
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from((GROUPED, WINDOW)))
def test_no_split_of_a_prompt_changes_a_bit(implementation, seed, shape):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 17))
    whole = attend(implementation, of_chunks(shape, [(1, 3, length)], rows=shape.N))[:length]
    cuts = [0, *sorted(rng.integers(1, length, 2)), length]
    for begin, end in itertools.pairwise(cuts):
        others = [(0, int(rng.integers(40)), 1 + int(rng.integers(4)))]
        chunks = [*others, (1, 3 + int(begin), int(end - begin))]
        part = attend(implementation, of_chunks(shape, chunks, rows=shape.N))
        first = others[0][2]
        np.testing.assert_array_equal(part[first : first + end - begin], whole[begin:end])


@pytest.mark.parametrize("implementation", (*COMPILED, "tpu"))
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, nightly(AxisType.Auto)])
def test_heads_over_devices(implementation, axis_type):
    """Two devices hold a key head each, and all rows; the interpreter of plain kernels knows of none."""
    mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2], axis_types=(axis_type,))
    case = of_chunks(GROUPED, MIXED, rows=GROUPED.N)
    op = jax.shard_map(
        functools.partial(slot_attention, implementation=implementation),
        mesh=mesh,
        in_specs=(P(None, "tensor"), P(None, "tensor"), P(None, "tensor"), P(), P(), P()),
        out_specs=P(None, "tensor"),
        check_vma=True,
    )
    placed = [
        jax.device_put(x, jax.NamedSharding(mesh, P(None, "tensor") if i < 3 else P()))
        for i, x in enumerate(case.operands())
    ]
    assert_close(jax.jit(op)(*placed), case.oracle(), terms=GROUPED.A)


@pytest.mark.parametrize("implementation", ("xla_blocks", "reference"))
def test_float64(implementation):
    with jax.enable_x64(True):
        case = of_chunks(GROUPED, MIXED, rows=GROUPED.N, dtype=np.float64)
        np.testing.assert_allclose(attend(implementation, case), case.oracle(), rtol=1e-12, atol=1e-12)


def test_a_prompt_that_is_written_and_read_in_chunks_is_causal_attention():
    """Page after page of NaN is filled; the whole is what attention over the prompt would be."""
    shape, length = WINDOW, 40
    case = of_chunks(shape, [(3, 0, length)], rows=length)
    prompt = [jnp.pad(x_QCHA[3, :length], ((0, 24), (0, 0), (0, 0))) for x_QCHA in case.dense()]
    table_QJ = jnp.asarray(np.random.default_rng(1).permutation(shape.P).reshape(shape.Q, shape.J))

    @jax.jit
    def step(pages, begin, end):
        position_N = begin + jnp.arange(24)
        at = jnp.where(position_N < end, 3, -1), position_N, table_QJ
        q_NHA, k_NGA, v_NGA = (jax.lax.dynamic_slice_in_dim(x, begin, 24) for x in prompt)
        pages = write_pages(*pages, k_NGA, v_NGA, *at)
        return pages, slot_attention(q_NHA, *pages, *at, window=shape.window)

    pages, parts = [jnp.full(shape.dims[1], jnp.nan)] * 2, []
    for begin, end in ((0, 13), (13, 14), (14, 37), (37, 40)):
        pages, o_NHA = step(pages, begin, end)
        parts.append(o_NHA[: end - begin])
    assert_close(jnp.concatenate(parts), case.oracle(), terms=shape.A)


def test_only_visible_blocks_are_read(monkeypatch):
    """A long request costs its own blocks of 16, and not those of its neighbours: by tiles, 3, 1, 1 and 3."""
    read = []

    def counted(self, page_PGSA, slot_W, block_W, block=cpu.Cache.block):
        jax.debug.callback(lambda slots: read.append(len(slots)), slot_W)
        return block(self, page_PGSA, slot_W, block_W)

    monkeypatch.setattr(cpu.Cache, "block", counted)
    monkeypatch.setattr(cpu, "LONE_AT_ONCE", 1)
    monkeypatch.setattr(cpu, "TILES_AT_ONCE", 1)
    case = of_chunks(GROUPED, [(0, 47, 1), (1, 0, 1), (2, 5, 1), (3, 30, 4)], rows=GROUPED.N)
    op = jax.jit(functools.partial(slot_attention, implementation="xla_blocks"))
    assert_close(op(*case.operands()), case.oracle(), terms=GROUPED.A)
    jax.effects_barrier()
    assert sum(read) == 2 * (3 + 1 + 1 + 3)  # keys and values


def test_what_is_refused():
    operands = of_chunks(GROUPED, MIXED, rows=GROUPED.N).operands()
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        slot_attention(*operands, window=0)
    with pytest.raises(ValueError, match=r"slots \(23,\).*expected rows \[N, H, A\]"):
        slot_attention(*operands[:3], operands[3][:-1], *operands[4:])
    with pytest.raises(ValueError, match=r"expected \[N, G, A\]"):
        write_pages(*operands[1:3], operands[0], operands[0], *operands[3:])
    with pytest.raises(NotServedError, match="train with segment_attention"):
        jax.grad(lambda q: slot_attention(q, *operands[1:]).sum())(operands[0])
    with pytest.raises(NotServedError, match="float64"), jax.enable_x64(True):
        slot_attention(operands[0].astype(np.float64), *operands[1:], implementation="tpu")
