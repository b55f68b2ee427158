"""What `write_pages` writes, and where."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import slot_attention, write_pages
from pallas_kernels.slot_attention import shapes
from pallas_kernels.slot_attention.shapes import SlotShape


def test_writing_by_hand():
    """Slot 1 has pages 2 and 0 of two positions each; what is outside the table is written nowhere."""
    page_k_PGSA, page_v_PGSA = jnp.zeros((3, 1, 2, 1)), jnp.zeros((3, 1, 2, 1))
    k_NGA = jnp.arange(1.0, 7.0)[:, None, None]
    slot_N, position_N = jnp.array([1, 1, 1, -1, 2, 1]), jnp.array([0, 1, 3, 0, 0, 4])
    table_QJ = jnp.array([[-1, -1], [2, 0]])
    k, v = write_pages(page_k_PGSA, page_v_PGSA, k_NGA, -k_NGA, slot_N, position_N, table_QJ)
    np.testing.assert_array_equal(k[:, 0, :, 0], [[0, 3], [0, 0], [1, 2]])
    np.testing.assert_array_equal(v, -k)


def test_pages_that_are_donated_are_written_in_place():
    shape = shapes.TINY[0]
    pages, k_NGA = jnp.zeros(shape.dims[1]), jnp.ones((shape.N, shape.G, shape.A))
    write = jax.jit(write_pages, donate_argnums=(0, 1))
    args = (
        pages,
        pages + 1,
        k_NGA,
        k_NGA,
        jnp.zeros(24, int),
        jnp.arange(24),
        jnp.zeros((shape.Q, shape.J), int),
    )
    memory = write.lower(*args).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 2 * pages.nbytes
    assert memory.temp_size_in_bytes < pages.nbytes / 2


@pytest.mark.parametrize("rows", [1, 24])
def test_pages_that_are_read_at_once_are_not_copied(rows):
    """As a layer of a stack does it. Pages are 8 times 2 heads of 8 positions and 16 numbers."""
    shape = SlotShape("layer", N=rows, H=4, G=2, A=16, Q=2, J=4, S=8)
    like = [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in shape.dims[:3]]
    rows_like = [jax.ShapeDtypeStruct((rows, 2, 16), jnp.float32)] * 2
    where_like = [jax.ShapeDtypeStruct(dims, jnp.int32) for dims in shape.dims[3:]]

    @functools.partial(jax.jit, donate_argnums=0)
    def layer(pages, q_NHA, new, where):
        pages = write_pages(*(x[0] for x in pages), *new, *where)
        return [x[None] for x in pages], slot_attention(q_NHA, *pages, *where, implementation="xla_blocks")

    stack = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in like[1:]]
    program = layer.lower(stack, like[0], rows_like, where_like).compile().as_text()
    assert not re.findall(r"= f32\[(?:1,)?8,2,8,16\]\S* copy\(", program)
