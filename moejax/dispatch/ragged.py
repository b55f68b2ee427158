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
    """Which rows go where: S slices, the first S/P for device 0 of the axis, the next for device 1, ..."""

    input_offsets: jax.Array  # i32, first row of each slice that is sent
    send_sizes: jax.Array
    output_offsets: jax.Array  # where it begins in the buffer of its receiver
    recv_sizes: jax.Array  # of the slices that arrive, the first S/P from device 0, ...

    def arrivals(self, axis: str):
        """Where the slices that arrive here begin."""
        return _swap(self.output_offsets, axis)

    def reversed(self, axis: str) -> "Slices":
        """The exchange that brings every row back to where it came from."""
        sources = _swap(self.input_offsets, axis)
        return Slices(self.arrivals(axis), self.recv_sizes, sources, self.send_sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def ragged_all_to_all(rows_RD, buffer_MD, slices: Slices, axis: str):
    """`buffer_MD` with the rows that the devices of `axis` send here written into it.

    Args are those of `jax.lax.ragged_all_to_all`, but that for the gradient no row may be sent twice.
    """
    return lax.platform_dependent(
        rows_RD,
        buffer_MD,
        slices,
        cpu=functools.partial(_in_cells, axis=axis),
        default=lambda rows_RD, buffer_MD, slices: lax.ragged_all_to_all(
            rows_RD, buffer_MD, *slices, axis_name=axis
        ),
    )


def _forward(rows_RD, buffer_MD, slices, axis):
    return ragged_all_to_all(rows_RD, buffer_MD, slices, axis), (rows_RD[:0], len(rows_RD), slices)


def _backward(axis, saved, d_result_MD):
    none_RD, num_rows, slices = saved
    zero_RD = vary(jnp.zeros((num_rows, *none_RD.shape[1:]), none_RD.dtype), varying_axes(d_result_MD))
    d_rows_RD = ragged_all_to_all(d_result_MD, zero_RD, slices.reversed(axis), axis)
    start_1S = slices.arrivals(axis)[None]
    row_M1 = jnp.arange(len(d_result_MD))[:, None]
    arrived_M = jnp.any((row_M1 >= start_1S) & (row_M1 < start_1S + slices.recv_sizes[None]), axis=1)
    return d_rows_RD, jnp.where(arrived_M[:, None], 0, d_result_MD), None


ragged_all_to_all.defvjp(_forward, _backward)


def rows_per_cell(num_rows: int, num_devices: int) -> int:
    """Rows of one cell, where `num_rows` is the smaller of the two buffers of an exchange."""
    return max(1, -(-num_rows // (CELLS * num_devices)))


def _in_cells(rows_RD, buffer_MD, slices: Slices, axis: str):
    """The loop of fixed all-to-alls; its count is that of the longest message between any two devices."""
    num_devices = lax.axis_size(axis)
    num_rows = min(len(rows_RD), len(buffer_MD))
    cell = rows_per_cell(num_rows, num_devices)
    by_device = lambda x_S: x_S.reshape(num_devices, -1)
    sent = by_device(slices.input_offsets), by_device(slices.send_sizes)
    arrived = by_device(slices.arrivals(axis)), by_device(slices.recv_sizes)
    longest = lax.pmax(jnp.max(jnp.sum(sent[1], axis=1)), axis)
    axes = varying_axes(rows_RD, buffer_MD, *slices)

    def move_cells(carry):
        trip, buffer_MD = carry
        rank_J = trip * cell + jnp.arange(cell, dtype=jnp.int32)
        from_PJ = _places(rank_J, *sent, past_the_end=len(rows_RD))
        cells_PJD = _swap(rows_RD.at[from_PJ].get(mode="clip"), axis)
        to_PJ = _places(rank_J, *arrived, past_the_end=len(buffer_MD))
        return trip + 1, buffer_MD.at[to_PJ].set(cells_PJD, mode="drop")

    balanced = -(-num_rows // (num_devices * cell))
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


def _swap(x, axis: str):
    """Block p of the leading dim goes to device p, and the block from device p comes in its place."""
    return lax.all_to_all(x, axis, split_axis=0, concat_axis=0, tiled=True)
