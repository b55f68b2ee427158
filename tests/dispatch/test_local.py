"""All-gather and reduce-scatter: what it moves by hand, and more chunks than tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.dispatch.load import Load
from moejax.dispatch.local import Local
from moejax.errors import UsageError


def test_bytes_by_hand():
    """Four devices with 3 tokens of 8 numbers and 2 slots: 12 rows of 32 bytes, 24 indices and 24 gates."""
    load = Load(devices=4, tokens=3, slots=2, experts=8, width=8)
    rows, slots = 12 * 32, 24 * 4
    assert Local().collective_bytes(load) == {"all-gather": rows + 2 * slots, "reduce-scatter": rows}
    assert Local().collective_bytes(load, passes=2) == {
        "all-gather": 2 * rows + 2 * slots,
        "reduce-scatter": 2 * rows + slots,
    }


def test_more_chunks_than_tokens():
    """Expert 0 gives the row itself: 1/2 of token 0, and token 1 has no expert."""
    p, x_BTD = {"w": jnp.zeros((1, 1))}, jnp.array([[[3.0], [5.0]]])
    expert_BTK, gate_BTK = jnp.array([[[0], [1]]]), jnp.array([[[0.5], [9.0]]])
    y_BTD, kept_BTK = Local(chunks=7)(lambda p, rows_RD, size_E: rows_RD, p, x_BTD, expert_BTK, gate_BTK)
    np.testing.assert_array_equal(y_BTD, [[[1.5], [0.0]]])
    np.testing.assert_array_equal(kept_BTK, [[[True], [False]]])


def test_no_chunk_is_refused():
    with pytest.raises(UsageError, match=r"dispatch.chunks=0 must be at least 1"):
        Local(chunks=0)
