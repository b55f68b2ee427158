"""The table of layouts, by hand, with and without a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax import sharding
from moejax.config import MeshConfig
from moejax.errors import UsageError
from tests.contracts import tiny

ROWS = ("data", "fsdp", "expert")


def test_without_a_mesh_there_is_no_layout():
    assert sharding.make_mesh(MeshConfig()) is None
    assert sharding.out("BTD") is None
    assert sharding.stored(("embed", "ffn")) is None
    x = jax.numpy.ones((2, 2))
    assert sharding.gather(x) is x
    assert sharding.whole(x) is x


def test_names_and_letters_under_a_mesh():
    with tiny.on_mesh(data=2, fsdp=2, tensor=2):
        assert sharding.out("BTD") == P(ROWS, None, None)
        assert sharding.out("BTHA") == P(ROWS, None, "tensor", None)
        assert sharding.out("DV") == P(None, "tensor")
        assert sharding.stored(("expert", "embed", "ffn")) == P("expert", "fsdp", "tensor")
        assert sharding.stored(("layer", None)) == P(None, None)


def test_a_stored_parameter_is_gathered_along_its_width_only():
    with tiny.on_mesh(fsdp=2, tensor=2) as mesh:
        w = jax.device_put(np.ones((4, 4)), jax.NamedSharding(mesh, sharding.stored(("embed", "ffn"))))
        assert jax.typeof(w).sharding.spec == P("fsdp", "tensor")
        assert jax.typeof(sharding.gather(w)).sharding.spec == P(None, "tensor")
        assert jax.typeof(sharding.whole(w)).sharding.spec == P(None, None)


def test_rows_are_placed_in_order():
    x_B = np.arange(8)
    with tiny.on_mesh(data=2, expert=2) as mesh:
        placed = sharding.place_rows({"x": x_B}, mesh)["x"]
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    np.testing.assert_array_equal(sharding.place_rows({"x": x_B}, None)["x"], x_B)


def test_the_open_axis_takes_what_is_left():
    assert sharding.make_mesh(MeshConfig(data=-1, tensor=2)).shape == {
        "data": 4,
        "fsdp": 1,
        "expert": 1,
        "tensor": 2,
    }


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(data=16), r"needs 16 devices, 8 are there.*--xla_force_host_platform_device_count=16"),
        (
            MeshConfig(data=-1, tensor=3),
            r"mesh.data=-1 .* 8 devices do not split over fsdp=1, expert=1, tensor=3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(mesh, message):
    with pytest.raises(UsageError, match=message):
        sharding.make_mesh(mesh)


def test_a_row_split_over_processes_is_refused():
    """Four devices in two processes: a tensor axis of 2 fits into one, of 4 does not."""
    process = np.array([0, 0, 1, 1])
    sharding.check_rows(process.reshape(2, 1, 1, 2))
    with pytest.raises(UsageError, match=r"mesh.tensor=4 reaches over processes of 2 devices each"):
        sharding.check_rows(process.reshape(1, 1, 1, 4))


def test_no_device_idles_in_a_run_of_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match=r"takes 1 of 8 devices, .*; grow mesh.data, or set it to -1"):
        sharding.make_mesh(MeshConfig())
