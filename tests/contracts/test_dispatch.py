"""What every dispatcher must do: the dense sum over experts, in value and gradient, on any mesh.

Nothing that is absent may be looked at: tokens without an expert hold NaN, so do the gates of empty slots,
and the experts return NaN, and a NaN gradient, for the rows that belong to none of them.
"""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import sharding
from moejax import specs as sp
from moejax.ffn.moe import Moe
from moejax.ops.experts import gated_experts
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from tests.contracts import oracles, tiny
from tests.contracts.cases import DISPATCHERS, DROPS, each

B, T, D, F, E, K = 8, 2, 4, 12, 8, 2
MESHES = {
    "one_device": {},
    "expert_8": {"expert": 8},
    "data_2_expert_4": {"data": 2, "expert": 4},
    "fsdp_2_expert_2_tensor_2": {"fsdp": 2, "expert": 2, "tensor": 2},
}
USUAL = "data_2_expert_4"
SCHEMES = [name for name in DISPATCHERS if "chunks" not in name and name not in DROPS]
# Variants of a scheme differ in how rows travel, so they are tested where rows travel.
PLACES = [(name, mesh) for name in DISPATCHERS for mesh in (MESHES if name in SCHEMES else [USUAL])]
DIMS = dict.fromkeys(("gate", "up"), ("expert", "embed", "ffn")) | {"down": ("expert", "ffn", "embed")}
ROUTINGS = ("full", "some_empty", "all_empty", "one_hot_expert", "unused_experts", "one_token")


def experts_in_numpy(seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((E, F, D) if name == "down" else (E, D, F)) for name in DIMS}


def choices(rng, num_slots=K):
    """Different experts for every slot of a token."""
    return rng.permuted(np.broadcast_to(np.arange(E), (B, T, E)), axis=-1)[..., :num_slots].astype(np.int32)


def routing(kind, seed=0):
    rng = np.random.default_rng(seed)
    expert_BTK = choices(rng)
    if kind == "some_empty":
        return np.where(rng.random((B, T, K)) < 0.4, E, expert_BTK).astype(np.int32)
    if kind == "all_empty":
        return np.full_like(expert_BTK, E)
    if kind == "one_hot_expert":
        return np.stack([np.full((B, T), 2, np.int32), np.full((B, T), E, np.int32)], axis=-1)
    if kind == "unused_experts":
        return np.where(expert_BTK % 2 == 0, E, expert_BTK).astype(np.int32)
    if kind == "one_token":  # fewer than devices
        return np.where(np.arange(B * T).reshape(B, T, 1) == 5, expert_BTK, E).astype(np.int32)
    return expert_BTK


def drawn(expert_BTK, seed=2):
    """Inputs around a routing; what is absent is NaN."""
    rng = np.random.default_rng(seed)
    x_BTD, gate_BTK = rng.standard_normal((B, T, D)), rng.random(expert_BTK.shape)
    x_BTD = np.where((expert_BTK == E).all(-1)[..., None], np.nan, x_BTD)
    return experts_in_numpy(), x_BTD, expert_BTK, np.where(expert_BTK == E, np.nan, gate_BTK)


def placed(name, p, *rows, mesh):
    """The arguments of `program(name)` on a mesh; a sliced dispatcher has its experts cut in its own way."""
    if mesh is not None:
        own = {"embed": "expert_embed", "ffn": "expert_ffn"} if DISPATCHERS[name].sliced else {}
        specs = {leaf: sharding.stored([own.get(dim, dim) for dim in dims]) for leaf, dims in DIMS.items()}
        p = jax.device_put(p, {leaf: jax.NamedSharding(mesh, spec) for leaf, spec in specs.items()})
    return p, *sharding.place_rows(rows, mesh)


def careless(p, rows_RD, size_E):
    """Experts that leave NaN, and a gradient of NaN, in the rows past the last group."""
    is_row_R1 = (jnp.arange(len(rows_RD)) < jnp.sum(size_E))[:, None]
    out_RD = gated_experts(p, poison_gradient(rows_RD, is_row_R1), size_E)
    return jnp.where(is_row_R1, out_RD, jnp.nan)


@jax.custom_vjp
def poison_gradient(rows_RD, is_row_R1):
    return rows_RD


def _poison_forward(rows_RD, is_row_R1):
    return rows_RD, is_row_R1


def _poison_backward(is_row_R1, d_rows_RD):
    return jnp.where(is_row_R1, d_rows_RD, jnp.nan), None


poison_gradient.defvjp(_poison_forward, _poison_backward)


@functools.lru_cache
def program(name):
    """Gradients of the sum of squares, output and kept slots; jit traces anew under every mesh."""

    def squares(p, x_BTD, gate_BTK, expert_BTK):
        y_BTD, kept_BTK = DISPATCHERS[name](careless, p, x_BTD, expert_BTK, gate_BTK)
        return jnp.sum(jnp.square(y_BTD)), (y_BTD, kept_BTK)

    def run(p, x_BTD, expert_BTK, gate_BTK):
        grads, (y_BTD, kept_BTK) = jax.grad(squares, argnums=(0, 1, 2), has_aux=True)(
            p, x_BTD, gate_BTK, expert_BTK
        )
        return (y_BTD, grads), kept_BTK

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


def dense(p, x_BTD, gate_BTK, expert_BTK):
    """Every expert on every token; the gradient comes from plain einsums."""
    hit_BTKE = expert_BTK[..., None] == jnp.arange(E)[None, None, None]
    weight_BTE = jnp.sum(gate_BTK[..., None] * hit_BTKE, axis=2)
    hidden_BTEF = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", x_BTD, p["gate"]))
    hidden_BTEF *= jnp.einsum("BTD,EDF->BTEF", x_BTD, p["up"])
    return jnp.einsum("BTEF,EFD,BTE->BTD", hidden_BTEF, p["down"], weight_BTE)


@jax.jit
def dense_gradients(p, x_BTD, expert_BTK, gate_BTK):
    """(output, gradients of the sum of squares); NaN counts as 0."""
    x_BTD, gate_BTK = jnp.nan_to_num(x_BTD), jnp.nan_to_num(gate_BTK)
    squares = lambda p, x, gate: jnp.sum(jnp.square(dense(p, x, gate, expert_BTK)))
    return dense(p, x_BTD, gate_BTK, expert_BTK), jax.grad(squares, argnums=(0, 1, 2))(p, x_BTD, gate_BTK)


def agrees(name, inputs, mesh, bound):
    """Assert that the dispatcher gives the dense sum over the slots that it kept, and keeps what it must."""
    p, x_BTD, expert_BTK, gate_BTK = inputs
    got, kept_BTK = program(name)(*placed(name, *inputs, mesh=mesh))
    kept_BTK, is_full_BTK = np.asarray(kept_BTK), expert_BTK < E
    if name in DROPS:
        assert not (kept_BTK & ~is_full_BTK).any()
    else:
        np.testing.assert_array_equal(kept_BTK, is_full_BTK)
    wanted = dense_gradients(p, x_BTD, np.where(kept_BTK, expert_BTK, E), gate_BTK)
    tiny.close(got, wanted, bound)


def test_the_dense_sum_equals_loops_over_tokens():
    with jax.enable_x64(True):
        p, *rows = drawn(routing("some_empty"))
        x_BTD, expert_BTK, gate_BTK = map(np.nan_to_num, rows)
        got = dense(p, x_BTD, gate_BTK, expert_BTK)
    np.testing.assert_allclose(got, oracles.moe(p, x_BTD, expert_BTK, gate_BTK), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "mesh_name"), PLACES)
def test_equals_the_dense_sum(name, mesh_name):
    with jax.enable_x64(True), tiny.on_mesh(**MESHES[mesh_name]) as mesh:
        for kind in ROUTINGS:
            agrees(name, drawn(routing(kind)), mesh, 1e-10)


@each("name", DISPATCHERS)
def test_any_routing_on_eight_devices(name):
    """No NaN comes out and no row is lost, whatever the tokens choose."""
    full_or_not = hnp.arrays(bool, (B, T, K), elements=st.booleans(), fill=st.booleans())

    @hypothesis.settings(max_examples=50, deadline=None, database=None)
    @hypothesis.given(
        seed=st.integers(0, 999), is_full_BTK=full_or_not, hot=st.none() | st.integers(0, E - 1)
    )
    def check(seed, is_full_BTK, hot):
        expert_BTK = choices(np.random.default_rng(seed))
        if hot is not None:
            expert_BTK = np.where(expert_BTK == hot, expert_BTK[..., ::-1], expert_BTK)
            expert_BTK[..., 0] = hot
        expert_BTK = np.where(is_full_BTK, expert_BTK, E).astype(np.int32)
        agrees(name, drawn(expert_BTK, seed), mesh, 1e-10)

    with jax.enable_x64(True), tiny.on_mesh(**MESHES[USUAL]) as mesh:
        check()


@each("name", SCHEMES)
def test_every_expert_for_every_token(name):
    with jax.enable_x64(True), tiny.on_mesh(**MESHES[USUAL]) as mesh:
        agrees(name, drawn(choices(np.random.default_rng(3), E)), mesh, 1e-10)


@each("name", SCHEMES)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_dtypes(name, dtype, bound):
    """Rows keep theirs on the way; gates are float32."""
    p, x_BTD, expert_BTK, gate_BTK = drawn(routing("some_empty"))
    p, x_BTD = jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), (p, x_BTD))
    inputs = p, x_BTD, expert_BTK, gate_BTK.astype(np.float32)
    with tiny.on_mesh(**MESHES[USUAL]) as mesh:
        (y_BTD, grads), _ = program(name)(*placed(name, *inputs, mesh=mesh))
    assert {x.dtype for x in jax.tree.leaves((y_BTD, grads[:2]))} == {jnp.dtype(dtype)}
    in_full = jax.tree.map(lambda a: a.astype(np.float32), (p, x_BTD))
    tiny.close((y_BTD, grads), dense_gradients(*in_full, expert_BTK, inputs[3]), bound)


@each("name", SCHEMES)
def test_every_device_takes_the_same_part(name):
    """Replicated results are equal on all devices: no device keeps a sum of its own."""
    with jax.enable_x64(True), tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
        results = program(name)(*placed(name, *drawn(routing("some_empty")), mesh=mesh))
    for leaf in jax.tree.leaves(results):
        parts = {}
        for shard in leaf.addressable_shards:
            tiny.equal(parts.setdefault(str(shard.index), shard.data), shard.data)


@each("name", SCHEMES)
def test_experts_with_biases_on_eight_devices(name):
    """Every bias is added once, however many devices compute the parts of a row."""
    layer = Moe(E, F, Linear(), TopK(K), DISPATCHERS[name], bias=True, linear_gate=True)
    specs, rng = layer.specs(tiny.float64(tiny.model(width=D))), np.random.default_rng(0)
    p = sp.tree_map(lambda spec: rng.standard_normal(spec.shape), specs)
    i = tiny.route_in(rng.standard_normal((B, T, D)), tiny.document(np.zeros((B, T))))
    squares = lambda p, i: jnp.sum(jnp.square(layer.apply(p, i)[0]))
    run = jax.jit(jax.value_and_grad(squares), compiler_options=tiny.QUICK_COMPILE)
    with jax.enable_x64(True):
        want = run(p, i)
        with tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
            where = jax.tree.map(lambda shape: shape.sharding, sp.shapes(specs, mesh))
            tiny.close(run(jax.device_put(p, where), sharding.place_rows(i, mesh)), want, 1e-10)


def test_two_tokens_two_experts_by_hand():
    """Expert 0 doubles, expert 1 adds ten. Token 3 goes to both with gates 1/2; token 5 to expert 1 alone."""

    def experts(p, rows_RD, size_E):
        expert_R = jnp.searchsorted(jnp.cumsum(size_E), jnp.arange(len(rows_RD)), side="right")
        return jnp.where((expert_R == 0)[:, None], 2 * rows_RD, rows_RD + 10)

    x_BTD = jnp.array([[[3.0], [5.0]]])
    expert_BTK, gate_BTK = jnp.array([[[0, 1], [1, 2]]]), jnp.array([[[0.5, 0.5], [1.0, 9.0]]])
    for name in SCHEMES:
        y_BTD, kept_BTK = DISPATCHERS[name](experts, {"w": jnp.zeros((2, 1, 1))}, x_BTD, expert_BTK, gate_BTK)
        np.testing.assert_array_equal(y_BTD, [[[0.5 * 6 + 0.5 * 13], [15.0]]])
        np.testing.assert_array_equal(kept_BTK, [[[True, True], [True, False]]])
