"""The sparse layer by hand, against float64, in its limits, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.analysis.flops import count
from moejax.config import MeshConfig
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe, adjust
from moejax.ffn.soft import Soft
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.seams import Side
from tests.contracts import oracles, tiny

E, D, F = 4, 8, 6
MOE = Moe(E, F, Linear(), TopK(2), Local())
M = tiny.float64(tiny.model(width=D))


@functools.lru_cache
def program(moe=MOE):
    return jax.jit(lambda p, i: moe.apply(p, i)[:2], compiler_options=tiny.QUICK_COMPILE)


def drawn(moe=MOE, m=M):
    """(parameters, a batch with absent tokens, its input); use within `jax.enable_x64()`."""
    p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), moe.specs(m)))
    batch = tiny.batch(0, rows=2, length=4)
    return p, batch, np.random.default_rng(1).standard_normal((2, 4, D)).astype(m.dtype)


def test_what_a_caller_adds_by_hand():
    """The bias changes scores and choice, the preference the choice only; a disallowed expert is -inf."""
    side = Side(
        bias_BE=jnp.array([[0.1, 0.0]]),
        prefer_BE=jnp.array([[0.0, 0.5]]),
        allow_BE=jnp.array([[False, True]]),
    )
    score_BTE, choice_BTE = adjust(jnp.array([[[0.6, 0.4]]]), side)
    np.testing.assert_allclose(score_BTE, [[[0.7, 0.4]]], rtol=1e-6)
    np.testing.assert_allclose(choice_BTE, [[[-np.inf, 0.9]]], rtol=1e-6)


def test_equals_loops_over_tokens():
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn()
        y_BTD, routing = jax.tree.map(np.asarray, program()(p, tiny.route_in(x_BTD, batch)))
    score_BTE = oracles.softmax(x_BTD @ p["score"]["w"])
    np.testing.assert_allclose(routing.score_BTE, score_BTE, rtol=1e-12)
    expert_BTK = np.argsort(-score_BTE)[..., :2]
    gate_BTK = np.take_along_axis(score_BTE, expert_BTK, -1)
    gate_BTK /= gate_BTK.sum(-1, keepdims=True)
    expert_BTK = np.where(batch.valid_BT[..., None], expert_BTK, E)
    np.testing.assert_array_equal(routing.expert_BTK, expert_BTK)
    np.testing.assert_allclose(y_BTD, oracles.moe(p["experts"], x_BTD, expert_BTK, gate_BTK), rtol=1e-10)


def test_experts_without_a_gate_equal_loops_over_tokens():
    moe = dataclasses.replace(MOE, gated=False)
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(moe)
        y_BTD, routing = jax.tree.map(np.asarray, program(moe)(p, tiny.route_in(x_BTD, batch)))
    assert p["experts"].keys() == {"up", "down"}
    want_BTD = np.zeros(x_BTD.shape)
    for b, t, k in np.argwhere(routing.expert_BTK < E):
        up_DF, down_FD = (p["experts"][name][routing.expert_BTK[b, t, k]] for name in ("up", "down"))
        want_BTD[b, t] += routing.gate_BTK[b, t, k] * (oracles.silu(x_BTD[b, t] @ up_DF) @ down_FD)
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("changes", [{}, {"linear_gate": True}])
def test_experts_with_biases_equal_loops_over_tokens(changes):
    moe = dataclasses.replace(MOE, bias=True, **changes)
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(moe)
        p = with_biases(p)
        y_BTD, routing = jax.tree.map(np.asarray, program(moe)(p, tiny.route_in(x_BTD, batch)))
    bank = p["experts"] | {"down_bias": p["down_bias"]}
    want_BTD = oracles.moe(bank, x_BTD, routing.expert_BTK, routing.gate_BTK)
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10)


def with_biases(p):
    """The parameters of a layer, none of its biases zero."""
    rng = np.random.default_rng(5)
    drawn = lambda path, w: rng.standard_normal(w.shape) if path[-1].key.endswith("_bias") else w
    return jax.tree_util.tree_map_with_path(drawn, p)


def test_dropped_rows_take_no_bias_with_them():
    """What finds no room in its cell adds nothing, not even the constant of its expert."""
    moe = dataclasses.replace(MOE, bias=True, dispatch=FixedCell(0.5))
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(moe)
        p = with_biases(p)
        y_BTD, routing = jax.tree.map(np.asarray, program(moe)(p, tiny.route_in(x_BTD, batch)))
    assert (routing.kept_BTK < (routing.expert_BTK < E)).any()
    kept_BTK = np.where(routing.kept_BTK, routing.expert_BTK, E)
    bank = p["experts"] | {"down_bias": p["down_bias"]}
    np.testing.assert_allclose(y_BTD, oracles.moe(bank, x_BTD, kept_BTK, routing.gate_BTK), rtol=1e-10)


def test_equal_experts_are_one_dense_layer():
    """And with all of them chosen, whatever the router says: gates sum to 1."""
    moe = dataclasses.replace(MOE, selector=TopK(E))
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(moe)
        p["experts"] = {name: np.repeat(w[:1], E, axis=0) for name, w in p["experts"].items()}
        y_BTD = program(moe)(p, tiny.route_in(x_BTD, batch))[0]
    want_BTD = oracles.glu({name: w[0] for name, w in p["experts"].items()}, x_BTD)
    np.testing.assert_allclose(y_BTD, np.where(batch.valid_BT[..., None], want_BTD, 0), rtol=1e-10)


def test_relabelled_experts_give_the_same_output():
    order_E = np.array([2, 0, 3, 1])
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn()
        new = {
            "score": {"w": p["score"]["w"][:, order_E]},
            "select": {},
            "experts": {name: w[order_E] for name, w in p["experts"].items()},
        }
        i = tiny.route_in(x_BTD, batch)
        tiny.close(program()(new, i)[0], program()(p, i)[0], 1e-12)


def test_disallowed_experts_are_as_if_cut():
    """Allowing experts 0 and 2 alone equals a layer that has no others."""
    small = dataclasses.replace(MOE, num_experts=2, scorer=Linear("sigmoid"))
    whole = dataclasses.replace(MOE, scorer=Linear("sigmoid"))
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(whole)
        cut = {
            "score": {"w": p["score"]["w"][:, [0, 2]]},
            "select": {},
            "experts": {name: w[[0, 2]] for name, w in p["experts"].items()},
        }
        side = Side(allow_BE=np.array([[True, False, True, False]]))
        masked = program(whole)(p, tiny.route_in(x_BTD, batch, side))[0]
        tiny.close(masked, program(small)(cut, tiny.route_in(x_BTD, batch))[0], 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(dtype):
    """Activations keep theirs; scores and gates are float32."""
    m = tiny.model(width=D, dtype=dtype)
    p, batch, x_BTD = drawn(m=m)
    y_BTD, routing = program()(p, tiny.route_in(x_BTD.astype(dtype), batch))
    assert y_BTD.dtype == jnp.dtype(dtype)
    assert routing.score_BTE.dtype == routing.gate_BTK.dtype == jnp.float32


@pytest.mark.parametrize("k", [1, 2])
def test_only_the_chosen_rows_cost_flops(k):
    """128 routed rows over 4 experts are whole tiles: 3 products of 2 D F each.

    A token costs 2 D E in the router, and 2 K D to weigh its rows, which is no matmul.
    """
    moe, N = Moe(E, F, Linear(), TopK(k), Local()), 128 // k
    m = tiny.model(width=D)
    p = sp.shapes(moe.specs(m))
    i = tiny.route_in(np.zeros((1, N, D), np.float32), tiny.document(np.zeros((1, N))))
    cost = count(jax.jit(lambda p, i: moe.apply(p, i)[0]).lower(p, i).compile())
    assert cost.matmul_flops == 128 * 3 * 2 * D * F + N * 2 * D * E


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.k=5 experts per token out of ffn.num_experts=4"):
        Moe(E, F, Linear(), TopK(5), Local())
    with pytest.raises(UsageError, match=r"ffn.hidden=0 must be at least 1"):
        Moe(E, 0, Linear(), TopK(2), Local())
    with pytest.raises(UsageError, match=r"ffn.linear_gate=True is one gate more, but ffn.gated=False"):
        dataclasses.replace(MOE, gated=False, linear_gate=True)
    with pytest.raises(UsageError, match=r"ffn.activation='clamped_swiglu' is of a gate and nothing else"):
        dataclasses.replace(MOE, gated=False, activation="clamped_swiglu")
    with pytest.raises(UsageError, match=r"shared_expert=Soft looks at other tokens or layers"):
        dataclasses.replace(MOE, shared_expert=Soft(E, F, slots=1, dispatch=Local()))
    with pytest.raises(UsageError, match=r"num_experts=4 is not divisible by mesh.expert=3"):
        MOE.check_mesh(MeshConfig(expert=3))
    with pytest.raises(UsageError, match=r"hidden=6 is not divisible by mesh.tensor=4"):
        MOE.check_mesh(MeshConfig(tensor=4))
