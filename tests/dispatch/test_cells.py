"""What finds no slot is dropped, counted and nothing else; settings that cannot work are refused."""

import jax
import numpy as np
import pytest

from moejax import sharding
from moejax.config import MeshConfig
from moejax.dispatch.cells import FixedCell
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from tests.contracts import tiny
from tests.dispatch.test_exchange import EXPERT_NK


def scale_by_expert(p, rows_RD, size_E):
    """Expert e multiplies by p[e]."""
    end_E = size_E.cumsum()
    expert_R = (end_E[None] <= np.arange(len(rows_RD))[:, None]).sum(1)
    return rows_RD * p["factor"].at[expert_R].get(mode="clip")[:, 0]


def test_a_dropped_row_adds_nothing_by_hand():
    """Tutel's example: with f = 1 the second choices of tokens 3 and 5 are dropped, gates are not raised."""
    run = jax.jit(lambda *args: FixedCell(capacity_factor=1.0)(scale_by_expert, *args))
    p = {"factor": np.array([1.0, 10.0, 100.0], np.float32).reshape(3, 1, 1)}
    gate_BTK = np.full((1, 6, 2), 0.5, np.float32)
    y_BTD, kept_BTK = run(p, np.ones((1, 6, 1), np.float32), EXPERT_NK[None], gate_BTK)
    dropped = [(3, 1), (5, 1)]
    assert [tuple(index) for index in np.argwhere(~np.asarray(kept_BTK[0]))] == dropped
    np.testing.assert_allclose(y_BTD[0, :, 0], [5.5, 5.5, 50.5, 5, 50.5, 50])


@pytest.mark.parametrize("chunks", [1, 3])
def test_every_device_has_slots_of_its_own(chunks):
    """Device d has d + 1 tokens for expert 5 and 2 slots for each expert (3 in chunks)."""
    is_there_BT = np.arange(8)[None] <= np.arange(8)[:, None]
    expert_BTK = np.where(is_there_BT, 5, 8).astype(np.int32)[..., None]
    dispatch = FixedCell(capacity_factor=2.0, chunks=chunks)
    run = jax.jit(lambda *args: dispatch(scale_by_expert, *args), compiler_options=tiny.QUICK_COMPILE)
    p = {"factor": np.arange(8, dtype=np.float32).reshape(8, 1, 1)}
    with tiny.on_mesh(expert=8) as mesh:
        p = jax.device_put(p, jax.NamedSharding(mesh, sharding.stored(("expert", "", ""))))
        rows = np.ones((8, 8, 1), np.float32), expert_BTK, np.ones((8, 8, 1), np.float32)
        y_BTD, kept_BTK = run(p, *sharding.place_rows(rows, mesh))
    slots = 2 if chunks == 1 else 3
    np.testing.assert_array_equal(kept_BTK[..., 0], is_there_BT & (np.arange(8)[None] < slots))
    np.testing.assert_array_equal(y_BTD, 5 * np.asarray(kept_BTK))


def test_what_cannot_work_is_refused():
    for factor in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=f"factor={factor} must be positive and finite, or None"):
            FixedCell(capacity_factor=factor)
    with pytest.raises(UsageError, match=r"chunks=0 must be at least 1"):
        FixedCell(chunks=0)
    with pytest.raises(UsageError, match=r"node_size=0 must be at least 1"):
        FixedCell(node_size=0)
    moe = Moe(8, 4, Linear(), TopK(2), FixedCell(node_size=3))
    with pytest.raises(UsageError, match=r"mesh.expert=8 is not divisible by dispatch.node_size=3"):
        moe.check_mesh(MeshConfig(expert=8))
