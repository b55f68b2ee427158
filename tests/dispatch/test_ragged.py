"""The exchange of ragged rows on CPU means what `jax.lax.ragged_all_to_all` says, and has a gradient."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from moejax.dispatch.ragged import Slices, cells, ragged_all_to_all
from tests.contracts import tiny

AXIS = "expert"
ROWS, BUFFER, WIDTH = 7, 9, 2


def on_devices(run, num_devices):
    """`run` on one device's share of the leading dim of every argument."""
    devices, kinds = jax.devices()[:num_devices], (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((num_devices,), (AXIS,), kinds, devices=devices)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=True)
    return jax.jit(mapped, compiler_options=tiny.QUICK_COMPILE)


def slices_of(input_offsets, send_sizes, output_offsets, recv_sizes):
    """The four arguments of jax.lax, and what follows from them."""
    swap = lambda x: jax.lax.all_to_all(x, AXIS, split_axis=0, concat_axis=0, tiled=True)
    there = swap(input_offsets), swap(output_offsets)
    return Slices(input_offsets, send_sizes, output_offsets, recv_sizes, *there)


@functools.lru_cache
def exchange(num_devices):
    """(result, gradients of sum(result * weights) in rows and buffer, rows brought back)."""

    def run(rows_RD, buffer_MD, weight_MD, *offsets):
        slices = slices_of(*offsets)
        send = functools.partial(ragged_all_to_all, slices=slices, axis=AXIS)
        result_MD, pull = jax.vjp(send, rows_RD, buffer_MD)
        nowhere_RD = jnp.full_like(rows_RD, -1)
        return result_MD, pull(weight_MD), ragged_all_to_all(result_MD, nowhere_RD, slices.reversed(), AXIS)

    return on_devices(run, num_devices)


def test_the_example_of_the_jax_documentation():
    operand = jnp.array([[1], [2], [2], [3], [4], [0]])
    arguments = [[0, 1, 0, 1], [1, 2, 1, 1], [0, 0, 1, 2], [1, 1, 2, 1]]
    run = on_devices(lambda x, out, *offsets: ragged_all_to_all(x, out, slices_of(*offsets), AXIS), 2)
    result = run(operand, jnp.zeros((8, 1), int), *map(jnp.array, arguments))
    np.testing.assert_array_equal(result[:, 0], [1, 3, 0, 0, 2, 2, 4, 0])


@st.composite
def plans(draw, num_devices, per_device):
    """Slices [device, slice] that lie apart in the rows of their senders and in the buffers of receivers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    share = draw(st.floats(0, 1))
    S = num_devices * per_device
    size_PS = np.zeros((num_devices, S), np.int32)
    for row in rng.permutation(num_devices * ROWS):  # one row more somewhere, while there is room
        sender, s = row % num_devices, rng.integers(S)
        receiver = s // per_device
        arrived = size_PS[:, receiver * per_device : (receiver + 1) * per_device].sum()
        if rng.random() < share and arrived < BUFFER and size_PS[sender].sum() < ROWS:
            size_PS[sender, s] += 1
    first_PS = _apart(rng, size_PS, ROWS)
    by_receiver = lambda x: x.reshape(num_devices, num_devices, per_device).swapaxes(0, 1)
    recv_PS = by_receiver(size_PS).reshape(num_devices, S)
    place_PS = by_receiver(_apart(rng, recv_PS, BUFFER)).reshape(num_devices, S)
    return first_PS, size_PS, place_PS, recv_PS


def _apart(rng, size_PS, room):
    """First rows of slices in any order, with gaps."""
    first_PS = np.zeros_like(size_PS)
    for first_S, size_S in zip(first_PS, size_PS, strict=True):
        at = rng.integers(room - size_S.sum() + 1)
        for s in rng.permutation(len(size_S)):
            first_S[s], at = at, at + size_S[s]
    return first_PS


def moves(first_PS, size_PS, place_PS, num_devices):
    """(sender, row, receiver, place) of every row that is sent."""
    per_device = size_PS.shape[1] // num_devices
    for sender, s in np.ndindex(size_PS.shape):
        for i in range(size_PS[sender, s]):
            yield sender, first_PS[sender, s] + i, s // per_device, place_PS[sender, s] + i


def check_plan(num_devices, plan):
    first_PS, size_PS, place_PS, _ = plan
    rows = np.full((num_devices, ROWS, WIDTH), np.nan)  # what is not sent may be anything
    sent = list(moves(first_PS, size_PS, place_PS, num_devices))
    for n, (sender, row, _, _) in enumerate(sent):
        rows[sender, row] = n + 1, -n
    buffer = -np.arange(1.0, num_devices * BUFFER * WIDTH + 1).reshape(num_devices, BUFFER, WIDTH)
    weight = np.arange(1.0, buffer.size + 1).reshape(buffer.shape)
    result, d_rows, d_buffer, back = buffer.copy(), np.zeros_like(rows), weight.copy(), -np.ones_like(rows)
    for sender, row, receiver, place in sent:
        result[receiver, place] = rows[sender, row]
        d_rows[sender, row] = weight[receiver, place]
        d_buffer[receiver, place] = 0
        back[sender, row] = rows[sender, row]
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    with jax.enable_x64(True):
        got = exchange(num_devices)(*map(flat, (rows, buffer, weight, *plan)))
    tiny.equal(got, jax.tree.map(flat, (result, (d_rows, d_buffer), back)))


def test_any_slices_over_four_devices():
    @hypothesis.settings(max_examples=150, deadline=None, database=None)
    @hypothesis.given(plan=plans(4, 1))
    def check(plan):
        check_plan(4, plan)

    check()


def test_several_slices_per_device():
    @hypothesis.settings(max_examples=150, deadline=None, database=None)
    @hypothesis.given(plan=plans(2, 3))
    def check(plan):
        check_plan(2, plan)

    check()


def test_cells_of_a_balanced_exchange():
    """640 rows to 8 devices are messages of 80: 8 cells of 10. Short messages have cells of one row."""
    assert cells(640, 8) == (10, 8)
    assert cells(641, 8) == (11, 8)
    assert cells(24, 8) == (1, 3)
    assert cells(1, 8) == (1, 1)
