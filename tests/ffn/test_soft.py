"""Soft mixtures by hand, against float64, in their limits, and on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import sharding
from moejax import specs as sp
from moejax.config import MeshConfig
from moejax.dispatch.adaptive import Adaptive
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.soft import Soft, slot_weights
from tests.contracts import oracles, tiny

B, T, D, E, F, S = 4, 5, 8, 4, 6, 2
SOFT = Soft(E, F, slots=S, dispatch=Local())
M = tiny.float64(tiny.model(width=D))


@functools.lru_cache
def program(soft=SOFT):
    return jax.jit(lambda p, i: soft.apply(p, i)[0], compiler_options=tiny.QUICK_COMPILE)


def drawn(soft=SOFT):
    """(parameters, a batch with absent tokens, its input); use within `jax.enable_x64()`."""
    p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), soft.specs(M)))
    batch = tiny.batch(0, rows=B, length=T)
    return p, batch, np.random.default_rng(1).standard_normal((B, T, D))


def test_two_tokens_two_slots_by_hand():
    """Logits (log 3, 0) and (0, 0): slot 0 is 3/4 of token 0; token 0 is 3/4 of slot 0."""
    logit_BTR = jnp.array([[[np.log(3.0), 0.0], [0.0, 0.0]]])
    mix_BTR, share_BTR = slot_weights(jnp.eye(2), logit_BTR, jnp.ones((1, 2, 1), bool))
    np.testing.assert_allclose(mix_BTR[0], [[0.75, 0.5], [0.25, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(share_BTR[0], [[0.75, 0.25], [0.5, 0.5]], rtol=1e-6)


def test_equals_loops_over_slots():
    """A row without any token, and absent tokens that hold NaN, included."""
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn()
        batch.valid_BT[2] = False
        want_BTD = oracles.soft(p, x_BTD, batch.valid_BT)
        x_BTD = np.where(batch.valid_BT[..., None], x_BTD, np.nan)
        np.testing.assert_allclose(
            program()(p, tiny.route_in(x_BTD, batch)), want_BTD, rtol=1e-10, atol=1e-12
        )


def test_equal_experts_with_one_slot_each_are_a_dense_layer_between_the_means():
    soft = dataclasses.replace(SOFT, slots=1)
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn(soft)
        batch.valid_BT[:] = True
        p["experts"] = {name: np.repeat(w[:1], E, axis=0) for name, w in p["experts"].items()}
        got_BTD = program(soft)(p, tiny.route_in(x_BTD, batch))
    logit_BTE = x_BTD @ p["slots"]
    slot_BED = np.einsum("bte,btd->bed", oracles.softmax(logit_BTE.swapaxes(1, 2)).swapaxes(1, 2), x_BTD)
    want_BED = oracles.glu({name: w[0] for name, w in p["experts"].items()}, slot_BED)
    want_BTD = np.einsum("bte,bed->btd", oracles.softmax(logit_BTE), want_BED)
    np.testing.assert_allclose(got_BTD, want_BTD, rtol=1e-10)


def test_eight_devices_give_what_one_does():
    where = {"slots": ("embed", None)} | dict.fromkeys(("gate", "up"), ("expert", "embed", "ffn"))
    where["down"] = ("expert", "ffn", "embed")
    squares = jax.jit(jax.value_and_grad(lambda p, i: jnp.sum(jnp.square(SOFT.apply(p, i)[0]))))
    with jax.enable_x64(True):
        p, batch, x_BTD = drawn()
        i = tiny.route_in(x_BTD, batch)
        want = squares(p, i)
        with tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
            place = lambda path, w: jax.device_put(
                w, jax.NamedSharding(mesh, sharding.stored(where[path[-1].key]))
            )
            got = squares(jax.tree_util.tree_map_with_path(place, p), sharding.place_rows(i, mesh))
        tiny.close(got, want, 1e-10)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"ffn.slots=0 must be at least 1"):
        Soft(E, F, slots=0, dispatch=Local())
    with pytest.raises(UsageError, match=r"ffn.num_experts=4 is not divisible by mesh.expert=3"):
        SOFT.check_mesh(MeshConfig(expert=3))
    with pytest.raises(UsageError, match=r"ffn.hidden=6 is not divisible by mesh.tensor\*mesh.fsdp=4"):
        dataclasses.replace(SOFT, dispatch=Adaptive()).check_mesh(MeshConfig(fsdp=4))
    with pytest.raises(UsageError, match=r"mesh.expert=2 is not divisible by dispatch.node_size=4"):
        dataclasses.replace(SOFT, dispatch=FixedCell(node_size=4)).check_mesh(MeshConfig(expert=2))
    with pytest.raises(UsageError, match=r"ffn.activation='tanh' is not one of"):
        dataclasses.replace(SOFT, activation="tanh")
