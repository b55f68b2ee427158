"""The linen module in a plain linen model under a TrainState."""

import dataclasses
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.flax import linen, routing_loss
from moejax.losses.balance import GlobalBalance
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.specs import count, leaves
from tests.contracts import tiny

MOE = Moe(4, 64, Linear(), TopK(2), Local())


class NextByte(nn.Module):
    """Embed, mix experts, unembed."""

    @nn.compact
    def __call__(self, token_BT):
        x = nn.Embed(256, 32)(token_BT)
        y, routing = linen.MoE(MOE).with_routing(x)
        return nn.Dense(256)(x + y), routing


@jax.jit
def train_step(state, token_BT):
    def loss_of(params):
        logits, routing = state.apply_fn({"params": params}, token_BT[:, :-1])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, token_BT[:, 1:]).mean()
        return nll + routing_loss(GlobalBalance(1e-2), routing)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def test_a_linen_model_learns():
    """Nats per byte of English and Python: 5.5 is uniform, 3.2 the frequencies of bytes alone."""
    text = inspect.getsource(textwrap).encode()[: 64 * 256]
    batches = jnp.array(list(text)).reshape(-1, 8, 64)
    model = NextByte()
    params = model.init(jax.random.key(0), batches[0])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2))
    losses = []
    for _ in range(3):
        for batch in batches:
            state, loss = train_step(state, batch)
            losses.append(float(loss))
    losses = np.array(losses).reshape(3, -1).mean(axis=1)
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 2.9


def test_parameters_are_the_declared_ones():
    variables = linen.MoE(MOE).init(jax.random.key(0), jnp.zeros((1, 16)))
    declared = MOE.specs(tiny.model(width=16))
    found = jax.tree_util.tree_leaves_with_path(variables["params"])
    assert len(found) == len(leaves(declared))
    assert sum(leaf.size for _, leaf in found) == count(declared)


@dataclasses.dataclass(frozen=True)
class Noisy(Linear):
    """Scores with noise, if there is a key."""

    def score(self, p, i):
        logit_BTE, score_BTE, memory = super().score(p, i)
        noise_BTE = 0.0 if i.key is None else jax.random.uniform(i.key, score_BTE.shape)
        return logit_BTE, score_BTE + noise_BTE, memory


def test_noise_comes_from_its_stream():
    layer, x_ND = linen.MoE(dataclasses.replace(MOE, scorer=Noisy())), jnp.ones((3, 16))
    variables = layer.init(jax.random.key(0), x_ND)
    quiet, again = layer.apply(variables, x_ND), layer.apply(variables, x_ND)
    np.testing.assert_array_equal(quiet, again)
    loud = layer.apply(variables, x_ND, rngs={"routing": jax.random.key(1)})
    assert not np.array_equal(loud, quiet)


def test_a_mesh_changes_nothing():
    x_BTD = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    layer = linen.MoE(MOE)
    make, run = jax.jit(layer.init), jax.jit(layer.apply)
    want_BTD = run(make(jax.random.key(0), x_BTD), x_BTD)
    with tiny.on_mesh(expert=2, tensor=2) as mesh:
        rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp", "expert")))
        x_BTD = jax.device_put(x_BTD, rows)
        variables = make(jax.random.key(0), x_BTD)
        assert variables["params"]["experts"]["up"].sharding.spec == jax.P("expert", "fsdp", "tensor")
        got_BTD = run(variables, x_BTD)
    tiny.close(got_BTD, want_BTD, 1e-5)
