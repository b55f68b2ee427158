"""What `write_pages` writes, and where."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import write_pages
from pallas_kernels.slot_attention import shapes


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
