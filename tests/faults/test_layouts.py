"""F18: a run saved on one mesh goes on on another."""

import dataclasses

import jax
import numpy as np
import pytest

from moejax import overrides
from moejax.config import CheckpointConfig
from moejax.training.checkpoint import Checkpointer
from moejax.training.leaves import named_leaves
from moejax.training.program import build
from tests.faults import recipe, trainer
from tests.faults.trainer import cut

LAYOUTS = [
    {"data": 2},
    {"fsdp": 2, "expert": 2},
    {"data": 2, "expert": 2, "tensor": 2},
    pytest.param({"expert": 4}, marks=pytest.mark.nightly),
    pytest.param({"tensor": 2}, marks=pytest.mark.nightly),
    pytest.param({"fsdp": 8}, marks=pytest.mark.nightly),
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.nightly),
]


def flags(layout: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"--config.mesh.{axis}={size}" for axis, size in layout.items())


def restored_on(run_dir, layout: dict[str, int]) -> dict[str, jax.Array]:
    """The newest checkpoint on a mesh of this process's virtual devices."""
    texts = {f"mesh.{axis}": str(size) for axis, size in layout.items()}
    program = build(overrides.resolve(recipe.config(), "recipe", texts).config)
    with program.mesh_context():
        checkpoints = Checkpointer(run_dir, CheckpointConfig(), read_only=True)
        return named_leaves(checkpoints.restore(program.abstract_state()).state)


def check_losses(run_dir, straight, first: int, last: int) -> None:
    """Steps `first` to `last` gave the losses of the undisturbed run."""
    expected = dict(trainer.losses(straight))
    seen = dict(trainer.losses(run_dir)[first - 1 : last])
    assert list(seen) == list(range(first, last + 1))
    np.testing.assert_allclose(list(seen.values()), [expected[step] for step in seen], rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(f"{k}{v}" for k, v in layout.items()))
def test_going_on_on_another_mesh(train, straight, tmp_path, layout):
    run_dir = cut(straight, tmp_path / "run", 10)
    num_devices = int(np.prod(list(layout.values())))

    restored = restored_on(run_dir, layout)
    plain = trainer.saved(run_dir)
    for name, leaf in plain.leaf.items():
        assert np.asarray(restored[name]).tobytes() == leaf.tobytes(), name
    assert any(len(leaf.sharding.device_set) == num_devices for leaf in restored.values())

    ended = train(run_dir, *flags(layout), devices=num_devices, faults="step=20:term")
    assert ended.code == 75, ended.output
    assert "going on from step 10" in ended.output
    check_losses(run_dir, straight, 11, 20)

    ended = train(run_dir, faults="step=30:term")  # and back
    assert ended.code == 75, ended.output
    assert "going on from step 20" in ended.output
    check_losses(run_dir, straight, 21, 30)


@pytest.mark.nightly
def test_an_unchanged_mesh_is_bit_exact(train, tmp_path):
    on_mesh = flags({"expert": 2, "data": 2})
    assert train(tmp_path / "straight", *on_mesh, devices=4).code == 0
    assert train(tmp_path / "run", *on_mesh, devices=4, faults="step=17:kill").code == -9
    assert train(tmp_path / "run", *on_mesh, devices=4).code == 0
    assert trainer.differing(trainer.saved(tmp_path / "run"), trainer.saved(tmp_path / "straight")) == []


@pytest.mark.nightly
def test_tiny_on_eight_devices(train, tmp_path):
    """The run on one device is compiled as users' are."""
    on_mesh, every_step = ("--config.mesh.expert=4", "--config.mesh.data=2"), "--config.train.log_every=1"
    as_users = dataclasses.replace(train, xla_flags="")
    for name, trains, own, devices in (("one", as_users, (), 1), ("eight", train, on_mesh, 8)):
        ended = trains(tmp_path / name, *own, every_step, devices=devices, config="configs/tiny.py")
        assert ended.code == 0, ended.output
    one, eight = (np.array(trainer.losses(tmp_path / name)) for name in ("one", "eight"))
    np.testing.assert_array_equal(one[:, 0], np.arange(1, 21))
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    leaves = trainer.saved(tmp_path / "one").leaf, trainer.saved(tmp_path / "eight").leaf
    for name in (name for name in leaves[0] if name.startswith("params")):
        bound = 1e-3 * np.abs(leaves[0][name]).max()
        np.testing.assert_allclose(leaves[1][name], leaves[0][name], rtol=0, atol=bound, err_msg=name)
