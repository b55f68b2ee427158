"""`jax.lax.ragged_all_to_all` on every backend, with a gradient.

Backends that have the collective (TPU, GPU) run it. XLA has none for CPU: there a loop of fixed all-to-alls
moves cells of a few rows per pair of devices until the longest message is through. Offsets mean the same in
both, and what both cost follows the rows that are sent, not the buffer that could receive more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.varying import vary, varying_axes

CELLS = 8  # in which the loop cuts the messages of a balanced exchange


class Slices(NamedTuple):
    """Which rows go where: S slices, the first S/P to (or from) device 0 of the axis, the next device 1, ...

    The first four are the arguments of `jax.lax.ragged_all_to_all`; the last two follow from them, by an
    exchange, and are what the way back needs.
    """

    input_offsets: jax.Array  # i32, first row of every slice that is sent
    send_sizes: jax.Array
    output_offsets: jax.Array  # where it begins in the buffer of its receiver
    recv_sizes: jax.Array
    source_offsets: jax.Array  # where the slices that arrive began in the rows of their senders
    arrival_offsets: jax.Array  # where they begin here

    def reversed(self) -> "Slices":
        """The exchange that brings every row back to where it came from."""
        there, sent, at_receiver, received, at_sender, here = self
        return Slices(here, received, at_sender, sent, at_receiver, there)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def ragged_all_to_all(rows_RD, buffer_MD, slices: Slices, axis: str):
    """`buffer_MD` with the rows that the devices of `axis` send here written into it.

    No row may be sent twice, or its gradient is that of one of the copies.
    """
    return lax.platform_dependent(
        rows_RD,
        buffer_MD,
        slices,
        cpu=functools.partial(_in_cells, axis=axis),
        default=functools.partial(_in_one, axis=axis),
    )


def empty_buffer(num_rows: int, rows_RD, slices: Slices):
    """Zeros in which rows like `rows_RD` can arrive."""
    # Nothing is above infinity, but the compiler does not know: of plain zeros it would keep one buffer for
    # all exchanges and copy it whole for each.
    zero = (rows_RD.reshape(-1)[0] > jnp.inf).astype(rows_RD.dtype)
    return jnp.full((num_rows, *rows_RD.shape[1:]), vary(zero, varying_axes(*slices)))


def _forward(rows_RD, buffer_MD, slices, axis):
    return ragged_all_to_all(rows_RD, buffer_MD, slices, axis), (len(rows_RD), slices)


def _backward(axis, saved, d_result_MD):
    num_rows, slices = saved
    back = slices.reversed()
    d_rows_RD = ragged_all_to_all(d_result_MD, empty_buffer(num_rows, d_result_MD, back), back, axis)
    first_1S, row_M1 = slices.arrival_offsets[None], jnp.arange(len(d_result_MD))[:, None]
    arrived_M = jnp.any((row_M1 >= first_1S) & (row_M1 < first_1S + slices.recv_sizes[None]), axis=1)
    return d_rows_RD, jnp.where(arrived_M[:, None], 0, d_result_MD), None


ragged_all_to_all.defvjp(_forward, _backward)


def _in_one(rows_RD, buffer_MD, slices: Slices, axis: str):
    return lax.ragged_all_to_all(rows_RD, buffer_MD, *slices[:4], axis_name=axis)


def cells(num_rows: int, num_devices: int) -> tuple[int, int]:
    """(rows of one cell, cells per message) of a balanced exchange of `num_rows` rows per device."""
    message = -(-num_rows // num_devices)
    cell = max(1, -(-message // CELLS))
    return cell, -(-message // cell)


def _in_cells(rows_RD, buffer_MD, slices: Slices, axis: str):
    """The loop of fixed all-to-alls; its count is that of the longest message between any two devices."""
    num_devices = lax.axis_size(axis)
    cell, balanced = cells(min(len(rows_RD), len(buffer_MD)), num_devices)
    by_device = lambda x_S: x_S.reshape(num_devices, -1)
    sent = by_device(slices.input_offsets), by_device(slices.send_sizes)
    arrived = by_device(slices.arrival_offsets), by_device(slices.recv_sizes)
    longest = lax.pmax(jnp.max(jnp.sum(sent[1], axis=1)), axis)
    axes = varying_axes(rows_RD, buffer_MD, *slices)

    def move_cells(carry):
        trip, buffer_MD = carry
        rank_J = trip * cell + jnp.arange(cell, dtype=jnp.int32)
        from_PJ = _places(rank_J, *sent, past_the_end=len(rows_RD))
        cells_PJD = rows_RD.at[from_PJ].get(mode="clip")
        cells_PJD = lax.all_to_all(cells_PJD, axis, split_axis=0, concat_axis=0, tiled=True)
        to_PJ = _places(rank_J, *arrived, past_the_end=len(buffer_MD))
        return trip + 1, buffer_MD.at[to_PJ].set(cells_PJD, mode="drop")

    with jax.named_scope(f"expected_trips_{balanced}"):
        start = jnp.int32(0), vary(buffer_MD, axes)
        return lax.while_loop(lambda carry: carry[0] * cell < longest, move_cells, start)[1]


def _places(rank_J, first_PS, size_PS, past_the_end: int):
    """Row of the rank_J-th row of each device's message, which is its slices one after the other."""
    end_PS = jnp.cumsum(size_PS, axis=1)
    slice_PJ = jnp.sum(end_PS[:, None] <= rank_J[None, :, None], axis=2)
    inside_PJ = slice_PJ < size_PS.shape[1]
    shift_PS = first_PS - end_PS + size_PS
    shift_PJ = jnp.take_along_axis(shift_PS, jnp.minimum(slice_PJ, size_PS.shape[1] - 1), axis=1)
    return jnp.where(inside_PJ, shift_PJ + rank_J[None], past_the_end)
