"""Every mode gives one device's numbers, moves what the byte model says, and leaves parameters in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from moejax import sharding
from moejax.analysis import parallel_plan
from moejax.analysis.hlo.parse import parse
from moejax.analysis.hlo.traffic import group_size
from moejax.bench import collectives
from moejax.config import MeshConfig
from moejax.dispatch.adaptive import Adaptive, Mode
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from tests.contracts import tiny

# Two experts over eight devices, four to each; every device has 8 tokens, so 8 slots per expert.
B, T, D, F, E, K = 8, 8, 8, 16, 2, 2
MESH = {"fsdp": 4, "expert": 2}
DIMS = {"up": ("expert", "expert_embed", "expert_ffn"), "down": ("expert", "expert_ffn", "expert_embed")}
ALL_R = (0, 1, 2, 4)


def relu_experts(p, rows_RD, size_E):
    """Two matrices with a ReLU between them; masks compile faster than grouped products."""
    expert_R = jnp.searchsorted(jnp.cumsum(size_E), jnp.arange(len(rows_RD)), side="right")
    own_RE = jax.nn.one_hot(expert_R, len(size_E), dtype=rows_RD.dtype)
    hidden_REF = jax.nn.relu(jnp.einsum("RD,EDF->REF", rows_RD, p["up"]))
    return jnp.einsum("REF,EFD,RE->RD", hidden_REF, p["down"], own_RE)


def one_mode(**fields):
    return Adaptive((Mode(**fields),))


def drawn(expert_BTK=None):
    """Parameters and inputs of a layer; by default tokens choose one expert, some both, some none."""
    rng = np.random.default_rng(0)
    p = {"up": rng.standard_normal((E, D, F)) / D**0.5, "down": rng.standard_normal((E, F, D)) / F**0.5}
    if expert_BTK is None:
        both_BTK = rng.permuted(np.broadcast_to(np.arange(E), (B, T, E)), axis=-1)
        expert_BTK = np.where(rng.random((B, T, K)) < 0.3, E, both_BTK)
    return p, rng.standard_normal((B, T, D)), rng.random((B, T, K)), expert_BTK.astype(np.int32)


def placed(p, *inputs, mesh):
    if mesh is not None:
        p = jax.device_put(p, {k: jax.NamedSharding(mesh, sharding.stored(dims)) for k, dims in DIMS.items()})
    return p, *sharding.place_rows(inputs, mesh)


def forward(dispatch, p, x_BTD, gate_BTK, expert_BTK):
    return dispatch(relu_experts, p, x_BTD, expert_BTK, gate_BTK)[0]


def gradients(dispatch, p, x_BTD, gate_BTK, expert_BTK):
    """(gradients of the sum of squares, y_BTD)."""

    def squares(*floats):
        y_BTD = forward(dispatch, *floats, expert_BTK)
        return jnp.sum(jnp.square(y_BTD)), y_BTD

    return jax.grad(squares, argnums=(0, 1, 2), has_aux=True)(p, x_BTD, gate_BTK)


def compiled(run, dispatch, inputs):
    program = jax.jit(functools.partial(run, dispatch))
    return program.lower(*inputs).compile(compiler_options=tiny.QUICK_COMPILE)


def results(dispatch, inputs):
    with tiny.on_mesh(**MESH) as mesh:
        inputs = placed(*inputs, mesh=mesh)
        return jax.tree.map(np.asarray, compiled(gradients, dispatch, inputs)(*inputs))


@functools.lru_cache
def on_one_device():
    """What `gradients` gives without a dispatch: every expert on every token."""

    def dense(_, p, x_BTD, expert_BTK, gate_BTK):
        hidden_BTEF = jax.nn.relu(jnp.einsum("BTD,EDF->BTEF", x_BTD, p["up"]))
        weight_BTE = jnp.einsum(
            "BTK,BTKE->BTE", gate_BTK, jax.nn.one_hot(expert_BTK, E, dtype=gate_BTK.dtype)
        )
        return jnp.einsum("BTEF,EFD,BTE->BTD", hidden_BTEF, p["down"], weight_BTE), None

    return jax.tree.map(np.asarray, jax.jit(functools.partial(gradients, dense))(*drawn()))


@pytest.mark.parametrize(
    "mode",
    [{"r": r} for r in ALL_R]
    + [{"r": 2, "chunks": 2, "node_size": 2}, {"r": 1, "chunks": 3, "node_size": 4}],
    ids=str,
)
def test_every_mode_equals_one_device(mode):
    with jax.enable_x64(True):
        tiny.close(results(one_mode(**mode), drawn()), on_one_device(), 1e-14)


def test_every_mode_equals_one_device_in_single_precision():
    inputs = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, drawn())
    with jax.enable_x64(True):
        wanted = on_one_device()
    for r in ALL_R:
        tiny.close(results(one_mode(r=r), inputs), wanted, 1e-5)


def received(program) -> dict[str, float]:
    """Elements that one device receives of others per kind of collective; those that carry floats."""
    module, total = parse(program.as_text()), {}
    for op in (op for computation in module.computations.values() for op in computation):
        sizes = [shape.size for shape in op.shapes if shape.is_float]
        if (devices := group_size(op)) and sizes:
            whole = sum(sizes) * (devices if op.opcode == "reduce-scatter" else 1)
            total[op.opcode] = total.get(op.opcode, 0) + whole * (devices - 1) / devices
    return {kind: size for kind, size in total.items() if size}


SHAPE = parallel_plan.MoeShape(D, F, E, expert_devices=2, slices=4, tokens=T, k=K)


@pytest.mark.parametrize("r, exchange, gathered", [(0, 0, 448), (1, 224, 192), (2, 448, 64), (4, 896, 0)])
def test_what_is_moved_by_hand(r, exchange, gathered):
    """Counted in the compiled programs: nothing else, so no parameter is laid out anew."""
    with tiny.on_mesh(**MESH) as mesh:
        inputs = placed(*drawn(), mesh=mesh)
        there = received(compiled(forward, one_mode(r=r), inputs))
        both = received(compiled(gradients, one_mode(r=r), inputs))
    kinds = {"all-to-all": exchange, "all-gather": gathered}
    assert there == {kind: size for kind, size in kinds.items() if size}
    kinds = {"all-to-all": 2 * exchange, "all-gather": gathered, "reduce-scatter": gathered}
    assert both == {kind: size for kind, size in kinds.items() if size}
    predicted = parallel_plan.traffic(SHAPE, SHAPE.rows(None), r)
    assert (predicted.exchange, predicted.weights) == (exchange, gathered)


def test_a_ladder_moves_what_its_formula_says():
    """Aligned cells, two levels, and a second forward pass within the backward pass."""
    ladder = Adaptive((Mode(1.0, r=1), Mode(1.25, r=2, chunks=3, node_size=4)))
    for row in collectives.rows([(ladder, collectives.SLICED)]):
        assert row.counted == {kind: size for kind, size in row.predicted.items() if size}


def test_changing_the_mode_moves_no_parameter():
    """One step per mode, each on what the one before left: no program wants, or leaves, another layout."""
    with tiny.on_mesh(**MESH) as mesh:
        p, *inputs = placed(*drawn(), mesh=mesh)
        where = jax.tree.map(lambda w: w.sharding, p)
        programs = [compiled(gradients, one_mode(r=r), (p, *inputs)) for r in ALL_R]
        for program in programs:
            wanted, _ = program.input_shardings
            assert jax.tree.all(
                jax.tree.map(lambda a, b, w: a.is_equivalent_to(b, w.ndim), wanted[0], where, p)
            )
        with jax.transfer_guard_device_to_device("disallow"):
            for program in programs:
                (grads, *_), _ = program(p, *inputs)
                assert jax.tree.map(lambda w: w.sharding, grads) == where
                p = jax.tree.map(lambda w, d: w - 0.01 * d, p, grads)
    assert where["up"].spec == jax.P("expert", None, ("tensor", "fsdp"))


def test_a_layer_stores_its_experts_in_slices():
    moe = Moe(E, F, Linear(), TopK(1), Adaptive())
    experts = moe.specs(tiny.model(width=D))["experts"]
    with tiny.on_mesh(**MESH) as mesh:
        specs = {name: sharding.stored(spec.dims, mesh) for name, spec in experts.items()}
    up = jax.P("expert", None, ("tensor", "fsdp"))
    assert specs == {"gate": up, "up": up, "down": jax.P("expert", ("tensor", "fsdp"), None)}


# Rows of the buffer on which experts compute tell the mode: N K without an exchange, W slots / 4 with r = 1.
LADDER = Adaptive((Mode(0.25, r=0), Mode(0.5), Mode()))
BUFFERS = {"rows stay": T * K, "4 slots": 8 * 4 // 4, "8 slots": 8 * 8 // 4}


def length_of_buffer(p, rows_RD, size_E):
    return jnp.full_like(rows_RD, len(rows_RD)) + 0 * lax.stop_gradient(rows_RD)


@pytest.mark.parametrize(
    "most, mode", [(0, "rows stay"), (2, "rows stay"), (3, "4 slots"), (5, "8 slots"), (8, "8 slots")]
)
def test_the_fullest_expert_of_all_devices_decides(most, mode):
    """Only device 5 is busy: all take the branch that it needs, or they would wait for one another."""
    expert_BTK = np.full((B, T, K), E)
    expert_BTK[5, :most, 1] = 1
    expert_BTK[:, 0, 0] = 0 if most else E
    p, x_BTD, gate_BTK, expert_BTK = drawn(expert_BTK)
    run = jax.jit(functools.partial(LADDER, length_of_buffer), compiler_options=tiny.QUICK_COMPILE)
    with tiny.on_mesh(**MESH) as mesh:
        p, x_BTD, gate_BTK, placed_BTK = placed(p, x_BTD, np.ones((B, T, K)), expert_BTK, mesh=mesh)
        y_BTD, kept_BTK = run(p, x_BTD, placed_BTK, gate_BTK)
    wanted_BT = BUFFERS[mode] * np.sum(expert_BTK < E, axis=-1)
    np.testing.assert_array_equal(y_BTD, np.broadcast_to(wanted_BT[..., None], (B, T, D)))
    np.testing.assert_array_equal(kept_BTK, expert_BTK < E)


def test_a_ladder_of_modes_equals_one_device():
    with jax.enable_x64(True):
        ladder = Adaptive((Mode(0.5, r=4), Mode(0.75, r=0), Mode(r=2, chunks=2)))
        tiny.close(results(ladder, drawn()), on_one_device(), 1e-14)


def first_come(expert_NK, slots):
    """Who gets a slot on one device, in plain loops: all first choices before all second ones."""
    kept_NK, used = np.zeros(expert_NK.shape, bool), [0] * E
    for k in range(expert_NK.shape[1]):
        for n, e in enumerate(expert_NK[:, k]):
            kept_NK[n, k] = e < E and used[e] < slots
            if e < E:
                used[e] += 1
    return kept_NK


def test_beyond_the_last_capacity_rows_drop():
    """f = 0.8 of 8 tokens over 2 experts gives K int(0.8 x 4) = 6 slots, in every mode, aligned or not."""
    rng = np.random.default_rng(3)
    expert_BTK = rng.permuted(np.broadcast_to(np.arange(E), (B, T, E)), axis=-1)
    wanted_BTK = np.stack([first_come(expert_NK, 6) for expert_NK in expert_BTK])
    assert 0 < np.sum(~wanted_BTK) == B * E * 2
    p, x_BTD, gate_BTK, expert_BTK = drawn(expert_BTK)
    with jax.enable_x64(True):
        p_one, *inputs = drawn(np.where(wanted_BTK, expert_BTK, E))
        wanted_BTD = jax.jit(functools.partial(forward, one_mode()))(p_one, *inputs)
        for mode in ({"r": 0}, {"r": 1}, {"r": 2, "chunks": 5}):
            dispatch = one_mode(capacity_factor=0.8, **mode)
            with tiny.on_mesh(**MESH) as mesh:
                run = jax.jit(functools.partial(dispatch, relu_experts), compiler_options=tiny.QUICK_COMPILE)
                q, x, gate, expert = placed(p, x_BTD, gate_BTK, expert_BTK, mesh=mesh)
                y_BTD, kept_BTK = run(q, x, expert, gate)
            np.testing.assert_array_equal(kept_BTK, wanted_BTK)
            tiny.close(y_BTD, wanted_BTD, 1e-14)


def test_the_planner_speaks_of_modes():
    costs = parallel_plan.Costs(*[parallel_plan.Linear(1e-3, 1e-6)] * 4, node=2)
    choices = parallel_plan.plan(SHAPE, costs, (1.0, 2.0, None))
    modes = tuple(Mode(**vars(choice)) for choice in choices)
    Adaptive(modes).check_mesh(MeshConfig(**MESH))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Mode(0.0), r"capacity_factor=0.0 must be positive and finite, or None"),
        (lambda: Mode(r=-1), r"r=-1 must be 0 or a divisor of mesh.fsdp"),
        (lambda: Mode(chunks=0), r"chunks=0 must be at least 1"),
        (lambda: Adaptive(()), r"modes is empty"),
        (lambda: Adaptive((Mode(2.0), Mode(1.0))), r"capacity factors \[2.0, 1.0\]; sort them"),
        (lambda: Adaptive((Mode(), Mode(1.0))), r"capacity factors \[None, 1.0\]; sort them"),
        (
            lambda: one_mode(r=3).check_mesh(MeshConfig(**MESH)),
            r"modes\[0\].r=3 does not divide mesh.fsdp=4.*choose 0 or a divisor of 4",
        ),
        (
            lambda: one_mode(node_size=3).check_mesh(MeshConfig(**MESH)),
            r"mesh.fsdp\*mesh.expert=8 is not divisible by dispatch.modes\[0\].node_size=3",
        ),
        (
            lambda: Moe(E, 6, Linear(), TopK(1), Adaptive()).check_mesh(MeshConfig(**MESH)),
            r"hidden=6 is not divisible by mesh.tensor\*mesh.fsdp=4",
        ),
    ],
)
def test_impossible_settings_are_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()
