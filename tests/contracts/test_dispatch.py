"""What every dispatcher must do: the dense sum over experts, in value and gradient, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding
from moejax.ops.experts import gated_experts
from tests.contracts import oracles, tiny
from tests.contracts.cases import DISPATCHERS, each

B, T, D, F, E, K = 8, 2, 4, 6, 4, 2
MESHES = {
    "one_device": {},
    "data_8": {"data": 8},
    "expert_4_data_2": {"expert": 4, "data": 2},
    "fsdp_2_expert_2_tensor_2": {"fsdp": 2, "expert": 2, "tensor": 2},
}
UP = ("expert", "embed", "ffn")
DIMS = {"gate": UP, "up": UP, "down": ("expert", "ffn", "embed")}


def experts_in_numpy(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((E, F, D) if name == "down" else (E, D, F)) for name in DIMS}


def routing(kind, seed=0):
    """(expert_BTK, gate_BTK); gates of empty slots are not 0, because a dispatcher must not look at them."""
    rng = np.random.default_rng(seed)
    expert_BTK = rng.permuted(np.broadcast_to(np.arange(E), (B, T, E)), axis=-1)[..., :K].astype(np.int32)
    if kind == "some_empty":
        expert_BTK = np.where(rng.random((B, T, K)) < 0.4, E, expert_BTK)
    elif kind == "all_empty":
        expert_BTK = np.full_like(expert_BTK, E)
    elif kind == "one_hot_expert":
        expert_BTK = np.stack([np.full((B, T), 2), np.full((B, T), E)], axis=-1)
    elif kind == "unused_experts":
        expert_BTK = np.where(expert_BTK % 2 == 0, E, expert_BTK)
    return expert_BTK.astype(np.int32), rng.random((B, T, K))


ROUTINGS = ("full", "some_empty", "all_empty", "one_hot_expert", "unused_experts")


def placed(p, x_BTD, expert_BTK, gate_BTK, mesh):
    if mesh is not None:
        where = {name: jax.NamedSharding(mesh, sharding.stored(dims)) for name, dims in DIMS.items()}
        p = jax.device_put(p, where)
    return p, *sharding.place_rows((x_BTD, expert_BTK, gate_BTK), mesh)


@functools.lru_cache
def program(dispatch):
    """Output and gradients of the sum of squares; jit traces anew under every mesh."""

    def squares(p, x_BTD, gate_BTK, expert_BTK):
        y_BTD, kept_BTK = DISPATCHERS[dispatch](gated_experts, p, x_BTD, expert_BTK, gate_BTK)
        return jnp.sum(jnp.square(y_BTD)), (y_BTD, kept_BTK)

    def run(p, x_BTD, expert_BTK, gate_BTK):
        grad = jax.grad(squares, argnums=(0, 1, 2), has_aux=True)
        return grad(p, x_BTD, gate_BTK, expert_BTK)

    return jax.jit(run)


def dense_reference(p, x_BTD, gate_BTK, expert_BTK):
    """Every expert on every token, in float64; the gradient comes from plain einsums."""
    hit_BTKE = expert_BTK[..., None] == jnp.arange(E)[None, None, None]
    weight_BTE = jnp.sum(gate_BTK[..., None] * hit_BTKE, axis=2)
    hidden_BTEF = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", x_BTD, p["gate"]))
    hidden_BTEF *= jnp.einsum("BTD,EDF->BTEF", x_BTD, p["up"])
    return jnp.einsum("BTEF,EFD,BTE->BTD", hidden_BTEF, p["down"], weight_BTE)


@functools.lru_cache
def reference(kind):
    """Inputs, and the gradients and value that they must give; the value equals loops over tokens."""
    expert_BTK, gate_BTK = routing(kind)
    p, x_BTD = experts_in_numpy(1), np.random.default_rng(2).standard_normal((B, T, D))
    y_BTD = dense_reference(p, x_BTD, gate_BTK, expert_BTK)
    np.testing.assert_allclose(y_BTD, oracles.moe(p, x_BTD, expert_BTK, gate_BTK), rtol=1e-12, atol=1e-12)
    squares = lambda p, x, gate: jnp.sum(jnp.square(dense_reference(p, x, gate, expert_BTK)))
    grads = jax.grad(squares, argnums=(0, 1, 2))(p, x_BTD, gate_BTK)
    return (p, x_BTD, expert_BTK, gate_BTK), jax.tree.map(np.asarray, (grads, y_BTD))


@each("dispatch", DISPATCHERS)
@each("mesh_name", MESHES)
def test_equals_the_dense_sum(dispatch, mesh_name):
    with jax.enable_x64(True):
        wanted = [reference(kind) for kind in ROUTINGS]
        with tiny.on_mesh(**MESHES[mesh_name]) as mesh:
            for inputs, (grads, y_BTD) in wanted:
                got_grads, (got_y_BTD, kept_BTK) = program(dispatch)(*placed(*inputs, mesh))
                tiny.close((got_y_BTD, got_grads), (y_BTD, grads), 1e-10)
                np.testing.assert_array_equal(kept_BTK, inputs[2] < E)


@each("dispatch", DISPATCHERS)
def test_every_device_takes_the_same_part(dispatch):
    """Replicated results are equal on all devices: no device keeps a sum of its own."""
    with jax.enable_x64(True):
        inputs, _ = reference("some_empty")
        with tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
            grads, _ = program(dispatch)(*placed(*inputs, mesh))
    for leaf in jax.tree.leaves(grads):
        parts = {}
        for shard in leaf.addressable_shards:
            tiny.equal(parts.setdefault(str(shard.index), shard.data), shard.data)


@each("dispatch", DISPATCHERS)
@each("mesh_name", ("one_device", "fsdp_2_expert_2_tensor_2"))
def test_absent_rows_do_not_leak(dispatch, mesh_name):
    """Tokens without an expert may hold NaN, and so may the gates of empty slots."""
    with jax.enable_x64(True):
        (p, x_BTD, expert_BTK, gate_BTK), (grads, y_BTD) = reference("some_empty")
        empty_BTK = expert_BTK == E
        absent_BT = empty_BTK.all(-1)
        assert absent_BT.any() and not absent_BT.all()
        x_BTD = np.where(absent_BT[..., None], np.nan, x_BTD)
        gate_BTK = np.where(empty_BTK, np.nan, gate_BTK)
        with tiny.on_mesh(**MESHES[mesh_name]) as mesh:
            got_grads, (got_y_BTD, _) = program(dispatch)(*placed(p, x_BTD, expert_BTK, gate_BTK, mesh))
    tiny.close((got_y_BTD, got_grads), (y_BTD, grads), 1e-10)


@each("dispatch", DISPATCHERS)
def test_what_lies_past_the_last_group_does_not_leak(dispatch):
    """An expert function may leave anything in the rows that belong to no expert."""

    def careless(p, rows_RD, size_E):
        out_RD = gated_experts(p, rows_RD, size_E)
        return jnp.where((jnp.arange(len(rows_RD)) < size_E.sum())[:, None], out_RD, jnp.nan)

    with jax.enable_x64(True):
        inputs, (_, y_BTD) = reference("some_empty")
        got_y_BTD, _ = jax.jit(functools.partial(DISPATCHERS[dispatch], careless))(*inputs)
    tiny.close(got_y_BTD, y_BTD, 1e-10)


def test_two_tokens_two_experts_by_hand():
    """Expert 0 doubles, expert 1 adds ten. Token 3 goes to both with gates 1/2; token 5 to expert 1 alone."""

    def experts(p, rows_RD, size_E):
        expert_R = jnp.searchsorted(jnp.cumsum(size_E), jnp.arange(len(rows_RD)), side="right")
        return jnp.where((expert_R == 0)[:, None], 2 * rows_RD, rows_RD + 10)

    x_BTD = jnp.array([[[3.0], [5.0]]])
    expert_BTK, gate_BTK = jnp.array([[[0, 1], [1, 2]]]), jnp.array([[[0.5, 0.5], [1.0, 9.0]]])
    for dispatch in DISPATCHERS.values():
        y_BTD, kept_BTK = dispatch(experts, {"w": jnp.zeros((2, 1, 1))}, x_BTD, expert_BTK, gate_BTK)
        np.testing.assert_array_equal(y_BTD, [[[0.5 * 6 + 0.5 * 13], [15.0]]])
        np.testing.assert_array_equal(kept_BTK, [[[True, True], [True, False]]])
