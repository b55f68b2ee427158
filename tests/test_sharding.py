"""Meshes from settings, on the eight devices of the tests."""

import jax
import numpy as np
import pytest

from moejax import sharding
from moejax.config import MeshConfig
from moejax.errors import UsageError


def test_one_device_needs_no_mesh():
    assert sharding.make_mesh(MeshConfig()) is None


def test_an_axis_takes_what_the_others_leave():
    mesh = sharding.make_mesh(MeshConfig(data=-1, expert=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "expert": 4, "tensor": 1}
    assert sharding.make_mesh(MeshConfig(data=8, fsdp=-1)).shape["fsdp"] == 1


@pytest.mark.parametrize(
    "axes, told",
    [
        ({"data": 16}, "data=16, fsdp=1, expert=1, tensor=1\\) needs 16 devices, 8 are there"),
        ({"data": 16, "fsdp": -1}, "needs 16 devices, 8 are there"),
        ({"data": 3, "fsdp": -1}, "mesh.fsdp=-1 .* 8 devices do not split over data=3, expert=1, tensor=1"),
    ],
)
def test_meshes_that_do_not_fit(axes, told):
    with pytest.raises(UsageError, match=told):
        sharding.make_mesh(MeshConfig(**axes))


def test_no_device_idles_in_a_run_of_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="takes 1 of 8 devices, .*; grow mesh.data, or set it to -1"):
        sharding.make_mesh(MeshConfig())


def test_a_row_stays_within_one_process():
    process = np.array([0, 0, 1, 1])
    sharding.check_rows(process.reshape(2, 1, 1, 2))
    sharding.check_rows(process.reshape(1, 4, 1, 1))
    with pytest.raises(UsageError, match="mesh.tensor=4 reaches over processes of 2 devices each"):
        sharding.check_rows(process.reshape(1, 1, 1, 4))


def test_rows_are_placed_over_all_row_axes():
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=2, tensor=2))
    rows = np.arange(24).reshape(8, 3)
    placed = sharding.place_rows({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
