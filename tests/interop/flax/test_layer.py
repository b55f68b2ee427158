"""Both modules against the raw layer and a float64 oracle; what they give a router and what they refuse."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.interop.flax import MoE, layer, linen, routing_loss
from moejax.losses.balance import GlobalBalance, SequenceBalance
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.seams import Routing, Scorer
from moejax.specs import Constant, Spec
from tests.contracts import oracles, tiny

E, D, F, B, T = 4, 8, 6, 2, 5
MOE = Moe(E, F, Linear(), TopK(2), Local())
X_BTD = np.random.default_rng(0).standard_normal((B, T, D))
VALID_BT = np.arange(T)[None] < np.array([[5], [3]])


def made_nnx(strategy=MOE, dtype="float32"):
    """(parameters as numpy arrays, x, ... -> (y, Routing))."""
    module = MoE(D, strategy, param_dtype=dtype, rngs=nnx.Rngs(0))
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module))["params"]), module.with_routing


def quick(call):
    return jax.jit(call, compiler_options=tiny.QUICK_COMPILE)


def made_linen(strategy=MOE, dtype="float32"):
    module = linen.MoE(strategy, param_dtype=dtype)
    variables = module.init(jax.random.key(0), jnp.zeros((1, D)))
    call = lambda x, *args, **kw: module.apply(variables, x, *args, method="with_routing", **kw)
    return jax.tree.map(np.asarray, variables["params"]), call


BOTH = pytest.mark.parametrize("made", [made_nnx, made_linen])


@BOTH
def test_equals_loops_over_tokens(made):
    with jax.enable_x64(True):
        p, call = made(dtype="float64")
        y_BTD, routing = jax.tree.map(np.asarray, quick(call)(X_BTD, VALID_BT))
    score_BTE = oracles.softmax(X_BTD @ p["score"]["w"])
    expert_BTK = np.argsort(-score_BTE)[..., :2]
    gate_BTK = np.take_along_axis(score_BTE, expert_BTK, -1)
    expert_BTK = np.where(VALID_BT[..., None], expert_BTK, E)
    np.testing.assert_array_equal(routing.expert_BTK, expert_BTK)
    want_BTD = oracles.moe(p["experts"], X_BTD, expert_BTK, gate_BTK / gate_BTK.sum(-1, keepdims=True))
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-14)
    assert (y_BTD[~VALID_BT] == 0).all()


@BOTH
def test_equals_the_raw_layer_bit_for_bit(made):
    p, call = made()
    p = p | {"select": {}}
    batch = tiny.document(np.zeros((B, T))).replace(valid_BT=VALID_BT)
    x_BTD = X_BTD.astype(np.float32)
    want = quick(lambda p, i: MOE.apply(p, i)[:2])(p, tiny.route_in(x_BTD, batch))
    tiny.equal(quick(call)(x_BTD, VALID_BT), want)


@BOTH
def test_flat_tokens_are_one_row(made):
    call = quick(made()[1])
    y_ND, routing = call(X_BTD[1], VALID_BT[1])
    assert y_ND.shape == (T, D) and routing.expert_BTK.shape == (1, T, 2)
    np.testing.assert_array_equal(y_ND, call(X_BTD[1:], VALID_BT[1:])[0][0])


@BOTH
def test_the_dtype_of_the_input_is_kept(made):
    y_BTD, routing = jax.eval_shape(made()[1], X_BTD.astype(jnp.bfloat16))
    assert y_BTD.dtype == jnp.bfloat16 and routing.gate_BTK.dtype == jnp.float32


@dataclasses.dataclass(frozen=True)
class Fields(Scorer):
    """Scores that say what the router saw."""

    reads: frozenset = frozenset({"x_BTD"})
    carried: bool = False
    seen: ClassVar[list] = []

    def specs(self, m, num_experts):
        return {}

    def carry_specs(self, m, num_experts):
        return {"state": Spec((4,), (None,), Constant(0.0))} if self.carried else {}

    def score(self, p, i):
        self.seen[:] = [i]
        flat_BTE = jnp.ones((*i.x_BTD.shape[:2], E), jnp.float32)
        return flat_BTE, flat_BTE, i.memory


@BOTH
def test_what_a_router_finds(made):
    call = made(dataclasses.replace(MOE, scorer=Fields()))[1]
    call(X_BTD, VALID_BT)
    (i,) = Fields.seen
    np.testing.assert_array_equal(i.h_BTD, i.x_BTD)
    np.testing.assert_array_equal(i.pre_BTD, i.x_BTD)
    np.testing.assert_array_equal(i.batch.valid_BT, VALID_BT)
    np.testing.assert_array_equal(i.batch.pos_BT, np.tile(np.arange(T), (B, 1)))
    call(X_BTD, pre_BTD=2 * X_BTD)
    (i,) = Fields.seen
    np.testing.assert_array_equal(i.pre_BTD, 2 * i.x_BTD)


@BOTH
@pytest.mark.parametrize(
    ("scorer", "field"),
    [
        (Fields(frozenset({"x_BTD", "mixing"})), "mixing"),
        (Fields(frozenset({"shared"})), "shared"),
        (Fields(carried=True), r"memory.carry\['state'\]"),
    ],
)
def test_what_a_flax_model_does_not_have_is_refused(made, scorer, field):
    with pytest.raises(UsageError, match=f"router reads {field}, which a Flax model does not have"):
        made(dataclasses.replace(MOE, scorer=scorer))


def test_token_ids_must_be_given():
    call = made_nnx(dataclasses.replace(MOE, scorer=Fields(frozenset({"batch"}))))[1]
    with pytest.raises(UsageError, match="reads token ids; pass batch="):
        call(X_BTD)
    batch = tiny.batch(0, B, T)
    call(X_BTD, batch=batch)
    assert Fields.seen[0].batch is batch


def test_a_routing_loss_by_hand():
    """Two tokens, two experts, both to expert 0 with share 3/4: 2 (1 * 3/4 + 0) = 1.5; even is 1."""
    score_BTE = jnp.array([[[0.75, 0.25], [0.75, 0.25]]])

    def routing(experts):
        expert_BTK = jnp.array([experts])[..., None]
        return Routing(expert_BTK, jnp.ones((1, 2, 1)), expert_BTK < 2, score_BTE, score_BTE)

    one, other = routing([0, 0]), routing([0, 1])
    np.testing.assert_allclose(routing_loss(GlobalBalance(1.0), one), 1.5, rtol=1e-6)
    np.testing.assert_allclose(routing_loss(SequenceBalance(0.1), one), 0.15, rtol=1e-6)
    np.testing.assert_allclose(routing_loss(GlobalBalance(1.0), one, other), 1.25, rtol=1e-6)
    first = jnp.array([[True, False]])
    np.testing.assert_allclose(routing_loss(GlobalBalance(1.0), routing([1, 2]), valid=first), 0.5, rtol=1e-6)


def test_layers_of_the_package_are_as_documented():
    """Every field that the docstring promises a default for is one of RouteIn."""
    names = {field.name for field in dataclasses.fields(layer.RouteIn)}
    assert set(layer.ABSENT) <= names
    assert {"h_BTD", "pre_BTD", "batch", "side", "key"} == names - set(layer.ABSENT) - {"x_BTD"}
