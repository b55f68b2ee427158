"""The TPU kernel: its copies and its sums run into no race, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # knows of races
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import slot_attention
from pallas_kernels.errors import NotServedError
from pallas_kernels.slot_attention import shapes, tpu
from pallas_kernels.testing import assert_close
from tests.pallas_kernels import interpreters
from tests.pallas_kernels.slot_attention.cases import of_chunks


@pytest.mark.parametrize("mode", ["on_wait", pytest.param("eager", marks=pytest.mark.nightly)])
def test_no_races(monkeypatch, mode):
    """Copies that land as late as they may, or at once."""
    monkeypatch.setattr(tpu, "BLOCK_KEYS", 16)
    monkeypatch.setattr(tpu, "TILE_QUERIES", 32)
    shape = shapes.TINY[1]
    case = of_chunks(shape, [(0, 47, 1), (2, 5, 9), (3, 30, 2)], rows=shape.N)
    params = pltpu.InterpretParams(detect_races=True, dma_execution_mode=mode)
    with interpreters.pallas_calls(params):
        op = jax.jit(lambda *args: slot_attention(*args, window=shape.window, implementation="tpu"))
        o_NHA = op(*case.operands())
    assert_close(o_NHA, case.oracle(), terms=shape.A)
    assert not interpreter.races.races_found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"S": 12}, "12 positions, which is no multiple of 8"),
        ({"Q": 1000, "J": 1000, "S": 8}, r"page table of \(1000, 1000\).*use larger pages"),
        ({"G": 256, "H": 512, "A": 256}, "do not fit in VMEM"),
    ],
)
def test_refusals(change, why):
    sizes = {"N": 4, "H": 4, "G": 2, "A": 16, "Q": 2, "J": 2, "S": 8} | change
    shape = shapes.SlotShape("refused", **sizes)
    args = [
        jax.ShapeDtypeStruct(dims, jnp.float32 if i < 3 else np.int32) for i, dims in enumerate(shape.dims)
    ]
    with pytest.raises(NotServedError, match=why):
        jax.eval_shape(lambda *args: slot_attention(*args, implementation="tpu"), *args)
