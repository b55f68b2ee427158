"""What the Hopper kernels of segment attention have in common.

A block of threads is three warp groups. Two compute, each for 64 rows of its own; the third fetches tiles
for both. A product takes its left side from registers or shared memory, its right side from shared memory.
"""

import inspect
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # of a product, in one warp group
TILE = 2 * ROWS
FETCHER = 2  # the warp group that fetches; 0 and 1 compute
FETCH_REGISTERS, COMPUTE_REGISTERS = 32, 240  # of each thread; 65,536 in all
LOG2_E = math.log2(math.e)  # the chip's exponential is that of 2
LAYOUT = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = LAYOUT.reduce(1), LAYOUT.reduce(0)


class Tiles(NamedTuple):
    """How far a step goes, and how many steps are fetched ahead."""

    width: int
    stages: int


def tiles_in_smem(*shape: int, dtype) -> plgpu.SMEM:
    """Tiles laid out as products want them."""
    layout = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=layout)


def barriers(number: int, arrivals: int = 1) -> plgpu.Barrier:
    """Barriers that open after so many arrivals."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)


def full(shape: tuple[int, ...], value: float, layout=LAYOUT):
    """A float32 array in registers."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def transposed(tile):
    """A tile in shared memory, read the other way round."""
    return plgpu.transpose_ref(tile, (1, 0))


def ring(step, stages: int):
    """The place of a step's tiles among the stages."""
    return lax.rem(step, jnp.int32(stages))


def spread_rows(x_R, shape: tuple[int, int]):
    """A number per row, over the columns."""
    return lax.broadcast_in_dim(x_R, shape, [0])


def spread_columns(x_C, shape: tuple[int, int]):
    """A number per column, over the rows."""
    return lax.broadcast_in_dim(x_C, shape, [1])


def rows_from(first):
    """The positions of a warp group's rows."""
    return first + plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=PER_ROW)


def wait_for_room(done, step, stages: int):
    """Wait until both warp groups are done with what was in a step's place of the ring."""

    @pl.when(step >= stages)
    def _():
        plgpu.barrier_wait(done.at[ring(step, stages)])


def load_rows(ref):
    """A number per row."""
    return _load(ref, PER_ROW)


def _load(ref, layout):
    """Into registers; jax 0.10 wants an index beside the reference."""
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()
    return plgpu.load(ref, *index, layout=layout, optimized=False)


def load_columns(ref):
    """A number per column."""
    return _load(ref, PER_COLUMN)


def masked(score_RC, segment_R, column_segments, first_column, low_R, high_R):
    """Scores, -inf where the segments differ or the column is not in [low, high] of its row.

    Segments come before bounds, with a wall between, so that what both need is not in registers at once.
    """
    shape = score_RC.shape
    segment_C = load_columns(column_segments.at[pl.ds(first_column, shape[1])])
    same_RC = spread_rows(segment_R, shape) == spread_columns(segment_C, shape)
    score_RC = lax.optimization_barrier(jnp.where(same_RC, score_RC, -jnp.inf))
    at_RC = first_column + plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=LAYOUT)
    inside_RC = None
    for bound_R, holds in ((low_R, lax.ge), (high_R, lax.le)):
        if bound_R is not None:
            within_RC = holds(at_RC, spread_rows(bound_R, shape))
            inside_RC = within_RC if inside_RC is None else inside_RC & within_RC
    return jnp.where(inside_RC, score_RC, -jnp.inf)
