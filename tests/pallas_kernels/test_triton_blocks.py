"""Blocks and the order of programs of the portable GPU kernels."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels.triton_blocks import Part, block, in_band, load, store


def test_bands_by_hand():
    """Three rows of two tiles in bands of two: down, then across, and the last row by itself."""
    order = [tuple(map(int, in_band(program, 3, 2, 2))) for program in range(6)]
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]


def test_a_block_reads_zero_outside_and_writes_nothing_there():
    """Rows 1 and 2 of four, columns from 4 on of five: the last block of two is half outside."""
    x_MN = jnp.arange(20.0).reshape(4, 5).at[3].set(jnp.nan)

    def kernel(x, out):
        rows, columns = Part(jnp.int32(1), 4, jnp.int32(2)), block(jnp.int32(1), 4, 5)
        out[...] = jnp.zeros((4, 5))
        store(out, load(x, rows, columns) + 1, rows, columns)

    out_MN = pl.pallas_call(kernel, jax.ShapeDtypeStruct((4, 5), jnp.float32), interpret=True)(x_MN)
    np.testing.assert_array_equal(out_MN, jnp.zeros((4, 5)).at[1:3, 4].set(jnp.array([10.0, 15.0])))


def test_blocks_that_are_whole_need_no_mask():
    assert block(3, 4, 16) == Part(12, 4, None)
    assert block(3, 4, 15) == Part(12, 4, 3)
