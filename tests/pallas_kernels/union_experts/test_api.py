"""What every implementation of the union of experts must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from pallas_kernels import expert_weights, union_experts
from pallas_kernels.errors import NotServedError
from pallas_kernels.union_experts import api, cpu, shapes, triton
from pallas_kernels.union_experts.reference import union_of
from pallas_kernels.union_experts.shapes import UnionShape
from tests.pallas_kernels import interpreters

INTERPRETED = ("tpu", "triton")  # step by step
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in INTERPRETED)
NIGHTLY = tuple(pytest.param(name, marks=pytest.mark.nightly) for name in INTERPRETED)
implementations = pytest.mark.parametrize("implementation", (*COMPILED, *INTERPRETED))
interpreted_nightly = pytest.mark.parametrize("implementation", (*COMPILED, *NIGHTLY))
of_the_union = pytest.mark.parametrize("implementation", ("xla_loop", *INTERPRETED))
PLAIN, GATED, ONE = shapes.TINY
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
# The scores of four tokens for four experts in the brief of BlockFFN's router.
SCORE_NE = np.array(
    [[1, -0.5, 0.2, -0.1], [0.8, 0.3, -0.4, -0.2], [-0.1, 0.6, 0.5, -0.3], [0.9, -0.2, 0.1, -0.4]]
)


@pytest.fixture(scope="module", autouse=True)
def visited():
    """Run all kernels here, those for GPU in several blocks; where those for TPU have been."""
    points = []

    def record(token, point, core):
        points.append(tuple(map(int, point)))
        return token

    params = pltpu.InterpretParams(grid_point_recorder=record)
    with pytest.MonkeyPatch.context() as patch, interpreters.pallas_calls(params):
        for name, value in {
            "DEPTH": {2: 16, 4: 16},
            "WIDTH": 16,
            "OUT_WIDTH": 16,
            "MANY_PROGRAMS": 4,
        }.items():
            patch.setattr(triton, name, value)
        yield points


@functools.cache
def apply(implementation: str, activation: str = "silu"):
    static = {"activation": activation, "implementation": implementation}
    return jax.jit(
        lambda x, weight, up, down, *gate: union_experts(
            x, weight, up, down, gate_EDF=gate[0] if gate else None, **static
        )
    )


def draw(shape: UnionShape, active_NE, seed: int = 0, dtype=np.float32):
    """x, weight, up, down and perhaps gate; all experts that no token wants are NaN."""
    rng = np.random.default_rng(seed)
    x_ND, weight_NE, *matrices = (rng.standard_normal(dims).astype(dtype) for dims in shape.dims)
    wanted_E = np.any(active_NE, axis=0)
    matrices = [
        np.where(wanted_E[:, None, None], m / np.sqrt(m.shape[1]), np.nan).astype(dtype) for m in matrices
    ]
    return x_ND, np.where(active_NE, weight_NE, 0).astype(dtype), *matrices


def oracle(x_ND, weight_NE, up_EDF, down_EFD, *gate, activation: str = "silu"):
    """y_ND in float64, one token and one expert at a time."""
    x_ND, weight_NE, up_EDF, down_EFD, *gate = (
        np.asarray(a, np.float64) for a in (x_ND, weight_NE, up_EDF, down_EFD, *gate)
    )
    y_ND, act = np.zeros_like(x_ND), ACTIVATIONS[activation]
    for n, e in zip(*np.nonzero(weight_NE), strict=True):
        up_F = x_ND[n] @ up_EDF[e]
        h_F = act(x_ND[n] @ gate[0][e]) * up_F if gate else act(up_F)
        y_ND[n] += weight_NE[n, e] * (h_F @ down_EFD[e])
    return y_ND


def check(
    implementation: str, shape, active_NE, seed: int = 0, dtype=np.float32, activation: str = "silu"
) -> None:
    operands = draw(shape, active_NE, seed, dtype)
    y_ND = apply(implementation, activation)(*operands)
    eps, terms = float(jnp.finfo(dtype).eps), max(active_NE.sum(axis=1).max(), 1)
    assert y_ND.dtype == dtype
    # hidden values round once, then sums of unit size are added
    np.testing.assert_allclose(
        np.asarray(y_ND, np.float64),
        oracle(*operands, activation=activation),
        rtol=eps,
        atol=32 * eps * terms**0.5,
    )
    np.testing.assert_array_equal(np.asarray(y_ND)[~active_NE.any(axis=1)], 0)


def some(shape: UnionShape, rng: np.random.Generator) -> np.ndarray:
    """Which experts a few tokens want; often none."""
    return rng.random((shape.N, shape.E)) < rng.choice([0, 0.1, 0.4, 1])


def relu_norm(score_NE):
    positive_NE = np.maximum(score_NE, 0)
    return positive_NE / np.sqrt(np.mean(positive_NE**2, axis=1, keepdims=True) + 1e-5)


@implementations
def test_two_experts_by_hand(implementation):
    """relu(2 x) and relu(-x) times 3 and 10: of 1 and -4, weighed by (1, 1) and (0, 2)."""
    x_ND, weight_NE = jnp.array([[1.0], [-4.0]]), jnp.array([[1.0, 1.0], [0.0, 2.0]])
    up_EDF, down_EFD = jnp.array([[[2.0]], [[-1.0]]]), jnp.array([[[3.0]], [[10.0]]])
    y_ND = apply(implementation, "relu")(x_ND, weight_NE, up_EDF, down_EFD)
    np.testing.assert_array_equal(y_ND, [[6.0], [80.0]])


@implementations
def test_the_scores_of_blockffn(implementation):
    """Four tokens: the weights are the paper's numbers; three of four experts are read, as in every pair."""
    weight_NE = relu_norm(SCORE_NE)
    np.testing.assert_allclose(weight_NE[0], [1.9611, 0, 0.3922, 0], atol=1e-4)
    np.testing.assert_allclose(weight_NE[2], [0, 1.5364, 1.2803, 0], atol=1e-4)
    for tokens in (slice(0, 2), slice(2, 4), slice(0, 4)):
        expert_U, count = union_of(weight_NE[tokens])
        assert expert_U[:3].tolist() == [0, 1, 2] and count == 3
    shape = UnionShape("blockffn", N=4, D=8, F=4, E=4)
    x_ND, _, up_EDF, down_EFD = draw(shape, np.ones((4, 4), bool))
    up_EDF[3], down_EFD[3] = np.nan, np.nan
    y_ND = apply(implementation)(x_ND, weight_NE.astype(np.float32), up_EDF, down_EFD)
    up_DH, down_HD = (
        np.moveaxis(up_EDF[:3], 0, 1).reshape(8, 12),
        down_EFD[:3].reshape(12, 8),
    )  # the dense form
    dense_NH = ACTIVATIONS["silu"](x_ND.astype(np.float64) @ up_DH) * np.repeat(weight_NE[:, :3], 4, axis=1)
    np.testing.assert_allclose(y_ND, dense_NH @ down_HD, atol=1e-5)


@implementations
@pytest.mark.parametrize("shape", shapes.TINY, ids=lambda shape: shape.name)
def test_equals_the_oracle(implementation, shape):
    active_NE = np.random.default_rng(1).random((shape.N, shape.E)) < 0.4
    active_NE[0] = shape.E == 1  # a token that wants nothing, and one expert for all
    check(implementation, shape, active_NE)


@interpreted_nightly
@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(shapes.TINY))
def test_any_choice(implementation, seed, shape):
    check(implementation, shape, some(shape, np.random.default_rng(seed)), seed)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@implementations
@settings(max_examples=40)
@given(data=st.data())
def test_any_shape(implementation, data):
    N, D, F, E = (data.draw(st.integers(1, most)) for most in (20, 40, 40, 9))
    shape = UnionShape("any", N, D, F, E, data.draw(st.booleans()))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for seed in range(25):
        check(implementation, shape, some(shape, rng), seed)


@implementations
def test_nobody_wants_anything(implementation):
    check(implementation, GATED, np.zeros((GATED.N, GATED.E), bool))


@interpreted_nightly
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(implementation, activation):
    check(implementation, GATED, np.ones((GATED.N, GATED.E), bool), activation=activation)


@implementations
def test_bfloat16_accumulates_in_float32(implementation):
    shape = UnionShape("wide", N=4, D=256, F=32, E=8)
    check(implementation, shape, np.random.default_rng(0).random((4, 8)) < 0.5, dtype=jnp.bfloat16)


@pytest.mark.parametrize("implementation", COMPILED)
def test_float64(implementation):
    with jax.enable_x64(True):
        check(implementation, GATED, np.ones((GATED.N, GATED.E), bool), dtype=np.float64)


@of_the_union
def test_a_token_does_not_depend_on_the_others(implementation):
    """Bit for bit, whatever the others choose, NaN or not, and wherever it stands."""
    active_NE = np.zeros((PLAIN.N, PLAIN.E), bool)
    active_NE[0, [1, 4, 6]] = True
    x_ND, weight_NE, *matrices = draw(PLAIN, np.ones_like(active_NE))
    alone = np.asarray(apply(implementation)(x_ND, weight_NE * active_NE, *matrices))[0]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        active_NE[1:] = rng.random((PLAIN.N - 1, PLAIN.E)) < 0.6
        x_ND[1:] = rng.choice([1, np.nan], (PLAIN.N - 1, 1))
        order = rng.permutation(PLAIN.N)
        y_ND = apply(implementation)(x_ND[order], (weight_NE * active_NE)[order], *matrices)
        np.testing.assert_array_equal(np.asarray(y_ND)[order == 0][0], alone)


@pytest.mark.parametrize("active", [0, 1, 4, 8])
def test_half_of_the_experts_are_half_of_the_bytes(active):
    """What the loop of plain operations reads: every expert of the union once."""
    read = []

    def counted(*args, one=cpu.one_expert):
        _, _, expert, wide, down_EFD, _ = args
        of_expert = [jax.lax.dynamic_index_in_dim(m, expert, keepdims=False) for m in (*wide, down_EFD)]
        jax.debug.callback(
            lambda e: read.append((int(e), sum(m.size * m.dtype.itemsize for m in of_expert))), expert
        )
        return one(*args)

    active_NE = np.zeros((PLAIN.N, PLAIN.E), bool)
    active_NE[np.arange(PLAIN.N)[:, None], np.arange(active)[None] // 2 * 2 % PLAIN.E] = True
    active_NE[0, :active] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "one_expert", counted)
        jax.block_until_ready(
            jax.jit(lambda *args: union_experts(*args, implementation="xla_loop"))(*draw(PLAIN, active_NE))
        )
        jax.effects_barrier()
    assert sorted(expert for expert, _ in read) == list(range(active))
    assert sum(size for _, size in read) == active * PLAIN.expert_numbers * 4


@pytest.mark.parametrize("active", [1, 4, 8])
def test_the_grid_on_tpu_is_as_long_as_the_union(visited, active):
    active_NE = np.broadcast_to(np.arange(PLAIN.E) < active, (PLAIN.N, PLAIN.E))
    visited.clear()
    jax.block_until_ready(apply("tpu")(*draw(PLAIN, active_NE)))
    assert visited == [(u, 0) for u in range(active)]


@pytest.mark.parametrize("implementation", COMPILED)
def test_experts_held_by_different_devices(implementation):
    """Each of four devices holds two of eight experts; their results add up to the whole."""
    mesh = jax.make_mesh((4,), ("expert",), devices=jax.devices()[:4])
    active_NE = np.random.default_rng(0).random((PLAIN.N, PLAIN.E)) < 0.5
    operands = draw(PLAIN, active_NE)
    held = lambda *args: jax.lax.psum(union_experts(*args, implementation=implementation), "expert")
    specs = (P(), P(None, "expert"), P("expert"), P("expert"))
    op = jax.shard_map(held, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=True)
    placed = [
        jax.device_put(x, jax.NamedSharding(mesh, spec)) for x, spec in zip(operands, specs, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(op)(*placed), oracle(*operands), rtol=1e-5, atol=1e-5)


def test_weights_of_what_a_router_chose():
    """Slots in any order; expert 3 of three is nobody, and an expert that is named twice counts twice."""
    expert_NK, gate_NK = jnp.array([[2, 0], [3, 1], [1, 1]]), jnp.array([[0.5, 0.25], [0.0, 1.0], [0.5, 2.0]])
    weight_NE = expert_weights(expert_NK, gate_NK, 3)
    np.testing.assert_array_equal(weight_NE, [[0.25, 0, 0.5], [0, 1, 0], [0, 2.5, 0]])


def test_what_is_refused():
    operands = draw(PLAIN, np.ones((PLAIN.N, PLAIN.E), bool))
    with pytest.raises(ValueError, match=r"weight is \(4, 7\).*expected \[N, D\], \[N, E\]"):
        union_experts(operands[0], operands[1][:, 1:], *operands[2:])
    with pytest.raises(ValueError, match="activation='tanh' is not one of silu"):
        union_experts(*operands, activation="tanh")
    with pytest.raises(NotServedError, match="train with grouped_matmul"):
        jax.grad(lambda x: union_experts(x, *operands[1:]).sum())(jnp.asarray(operands[0]))
    many = np.ones((300, PLAIN.D), np.float32), np.ones((300, PLAIN.E), np.float32)
    with pytest.raises(NotServedError, match="300 tokens are more than 256"):
        union_experts(*many, *operands[2:], implementation="tpu")
