"""Save and restore: every kind of leaf to the bit, on any mesh, in any order of events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moejax.config import CheckpointConfig
from moejax.errors import CheckpointError
from moejax.training.checkpoint import Checkpointer

CFG = CheckpointConfig(keep_last=3)


def bits(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_bit_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert bits(one) == bits(other)


def abstract(tree):
    def form(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(form, tree)


def everything():
    """One leaf of every kind that a train state may hold."""
    special = jnp.array([-0.0, 0.0, jnp.nan, jnp.inf, -jnp.inf, 1e-42, 3.4e38], jnp.float32)
    return {
        "params": {
            "w": jnp.arange(6.0).reshape(2, 3),
            "bf16": special.astype(jnp.bfloat16),
            "special": special,
        },
        "zeros": -jnp.zeros((4,)),
        "int": jnp.array([-(2**31), 2**31 - 1], jnp.int32),
        "int8": jnp.arange(-3, 3, dtype=jnp.int8),
        "bool": jnp.array([True, False, True]),
        "scalar": jnp.int32(7),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 5),
        "no_elements": jnp.zeros((0, 4)),
        "host": np.array([1.5, -2.5], np.float64),
        "tuple": (jnp.ones(1), [jnp.zeros(2, jnp.uint32)]),
        "none": None,
        "empty": {},
    }


def test_worked_example(tmp_path):
    checkpoints = Checkpointer(tmp_path, CFG)
    assert checkpoints.restore({"w": jax.ShapeDtypeStruct((2,), jnp.float32)}) is None
    checkpoints.save(5, {"w": jnp.array([1.0, 2.0])}, {"data": {"next_index": 40}})
    checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.latest()) == ([5], 5)
    assert checkpoints.restore_meta() == {"data": {"next_index": 40}}
    step, state, meta = Checkpointer(tmp_path, CFG).restore({"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
    assert (step, meta) == (5, {"data": {"next_index": 40}})
    np.testing.assert_array_equal(state["w"], [1.0, 2.0])


def test_every_kind_of_leaf_comes_back_to_the_bit(tmp_path):
    state = everything()
    checkpoints = Checkpointer(tmp_path, CFG)
    checkpoints.save(1, state, {})
    restored = checkpoints.restore(abstract(state))
    assert_bit_equal(restored.state, state)
    assert isinstance(restored.state["host"], np.ndarray)
    assert jax.random.bits(restored.state["key"]) == jax.random.bits(state["key"])
    without_shardings = jax.eval_shape(lambda: {k: v for k, v in everything().items() if k != "host"})
    with pytest.raises(CheckpointError, match="host"):
        checkpoints.restore(without_shardings)


@pytest.mark.parametrize("state", [{}, {"a": {}, "b": None}, {"a": jnp.zeros((0,))}])
def test_trees_without_elements(tmp_path, state):
    checkpoints = Checkpointer(tmp_path, CFG)
    checkpoints.save(1, state, {"meta": 1})
    restored = checkpoints.restore(abstract(state))
    assert_bit_equal(restored.state, state)
    assert restored.meta == {"meta": 1}


MESHES = {
    "2x4": ((2, 4), ("data", "expert")),
    "4x2": ((4, 2), ("data", "expert")),
    "8": ((8,), ("data",)),
    "1": ((1,), ("data",)),
}


def sharded(state, mesh_name):
    """`state` on a mesh: the first dim over data, the second over expert, if the mesh has it."""
    shape, axes = MESHES[mesh_name]
    mesh = jax.make_mesh(shape, axes, devices=jax.devices()[: np.prod(shape)])
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes[: x.ndim]))), state
    )


@pytest.mark.parametrize("target", MESHES)
@pytest.mark.parametrize("source", ["2x4", "1"])
def test_any_mesh_restores_what_another_saved(tmp_path, source, target):
    values = {
        "w": jax.random.normal(jax.random.key(0), (8, 16)),
        "bf16": jax.random.normal(jax.random.key(1), (16, 8), jnp.bfloat16),
        "keys": jax.random.split(jax.random.key(2), 8),
        "step": jnp.int32(3),
    }
    checkpoints = Checkpointer(tmp_path, CFG)
    checkpoints.save(1, sharded(values, source), {})
    wanted = sharded(values, target)
    restored = checkpoints.restore(abstract(wanted)).state
    assert_bit_equal(restored, values)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_the_state_may_be_donated_or_overwritten_as_soon_as_save_returns(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state, host = jnp.zeros((1 << 18,)), np.zeros((1 << 18,))
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(keep_last=10))
    for number in range(5):
        checkpoints.save(number, {"x": state, "host": host}, {})
        host[:] = number + 1
        for _ in range(10):
            state = step(state)
    for number in range(5):
        found = checkpoints.restore(
            {"x": jax.ShapeDtypeStruct(state.shape, state.dtype), "host": host}, step=number
        )
        np.testing.assert_array_equal(found.state["x"], 10 * number)
        np.testing.assert_array_equal(found.state["host"], number)


def test_a_checkpoint_of_another_model_is_refused_leaf_by_leaf(tmp_path):
    checkpoints = Checkpointer(tmp_path, CFG)
    checkpoints.save(1, {"params": {"down": jnp.zeros((4, 4, 3)), "up": jnp.zeros(2)}}, {})
    wanted = {
        "params": {"down": jnp.zeros((4, 8, 3)), "up": jnp.zeros(2, jnp.bfloat16), "gate": jnp.zeros(1)}
    }
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(abstract(wanted))
    assert "params/down is float32 (4, 4, 3), the config asks for float32 (4, 8, 3)" in str(caught.value)
    assert "params/up is float32 (2,), the config asks for bfloat16 (2,)" in str(caught.value)
    assert "params/gate is not in the checkpoint" in str(caught.value)
    assert checkpoints.steps() == [1]  # it is not damaged


def test_a_step_can_be_asked_for(tmp_path):
    checkpoints = Checkpointer(tmp_path, CFG)
    for step in (1, 2):
        checkpoints.save(step, {"x": jnp.float32(step)}, {"step": step})
    restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.float32)}, step=1)
    assert (restored.step, float(restored.state["x"]), restored.meta) == (1, 1.0, {"step": 1})
    assert checkpoints.restore_meta(1) == {"step": 1}
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are: 1, 2"):
        checkpoints.restore({}, step=7)
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoints.restore_meta(7)


def test_the_current_step_is_not_saved_twice_but_a_stale_one_is_replaced(tmp_path):
    shape = {"x": jax.ShapeDtypeStruct((), jnp.float32)}
    checkpoints = Checkpointer(tmp_path, CFG)
    for step in (1, 2):
        checkpoints.save(step, {"x": jnp.float32(step)}, {})
    checkpoints.save(2, {"x": jnp.float32(-1)}, {})  # the trainer would pass the same state again
    assert float(checkpoints.restore(shape).state["x"]) == 2
    assert checkpoints.restore(shape, step=1).step == 1
    checkpoints.save(2, {"x": jnp.float32(20)}, {})  # from step 1 on, history is another one
    assert float(checkpoints.restore(shape).state["x"]) == 20
    assert checkpoints.steps() == [1, 2]


def test_meta_is_copied_and_must_be_json(tmp_path):
    checkpoints = Checkpointer(tmp_path, CFG)
    meta = {"data": [1]}
    checkpoints.save(1, {"x": jnp.zeros(3)}, meta)
    meta["data"].append(2)
    checkpoints.wait()
    assert checkpoints.restore_meta() == {"data": [1]}
    with pytest.raises(TypeError):
        checkpoints.save(2, {"x": jnp.zeros(3)}, {"data": object()})


def test_read_only_changes_nothing(tmp_path):
    writer = Checkpointer(tmp_path, CFG)
    for step in (1, 2):
        writer.save(step, {"x": jnp.float32(step)}, {})
    writer.wait()
    (tmp_path / "checkpoints" / "2" / "MANIFEST.json").unlink()
    (tmp_path / "checkpoints" / ".tmp-3").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpointer(tmp_path, CFG, read_only=True)
    assert reader.restore({"x": jax.ShapeDtypeStruct((), jnp.float32)}).step == 1
    with pytest.raises(RuntimeError, match="read-only"):
        reader.save(3, {}, {})
    assert sorted(tmp_path.rglob("*")) == before
    assert Checkpointer(tmp_path, CFG).steps() == [1, 2]
    assert not (tmp_path / "checkpoints" / ".tmp-3").exists()


def test_a_reader_may_ask_for_a_part(tmp_path):
    state = {"params": {"w": jnp.arange(6.0)}, "optimiser": {"mean": jnp.ones(6)}}
    writer = Checkpointer(tmp_path, CFG)
    writer.save(1, state, {})
    writer.wait()
    part = {"params": state["params"]}
    with pytest.raises(CheckpointError, match="optimiser/mean"):
        writer.restore(abstract(part))
    reader = Checkpointer(tmp_path, CFG, read_only=True)
    assert_bit_equal(reader.restore(abstract(part)).state, part)
    with pytest.raises(CheckpointError, match="params/v is not in the checkpoint"):
        reader.restore({"params": {"v": jax.ShapeDtypeStruct((), jnp.float32)}})


def test_old_steps_go_as_the_policy_says(tmp_path):
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(keep_last=2, keep_every=4))
    for step in range(1, 10):
        checkpoints.save(step, {"x": jnp.zeros(3)}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 8, 9]
