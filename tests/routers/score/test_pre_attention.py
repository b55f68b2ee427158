"""The router before attention, by hand and in a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.model import forward as model
from moejax.routers.score.pre_attention import PreAttention
from moejax.routers.select.top_k import TopK
from tests.contracts import tiny


@pytest.mark.parametrize(
    ("activation", "want"), [("sigmoid", [0.5464, 0.4536]), ("softmax", [0.7311, 0.2689])]
)
def test_published_gates(activation, want):
    """Logits (2, 1, 0, -1) from the raw stream h = 1, k = 2."""
    i = tiny.route_in(np.zeros((1, 1, 1), np.float32), tiny.document([[0]]))
    i = i.replace(h_BTD=jnp.ones((1, 1, 1)))
    _, score_BTE, _ = PreAttention(activation).score({"w": jnp.array([[2.0, 1, 0, -1]])}, i)
    expert_BTK, gate_BTK, _ = TopK(2).select({}, score_BTE, score_BTE, i.batch.valid_BT, None)
    assert expert_BTK[0, 0].tolist() == [0, 1]
    np.testing.assert_allclose(gate_BTK[0, 0], want, atol=5e-5)


def test_attention_does_not_change_its_own_blocks_choice():
    """Other queries move the choice of later layers only; another token moves that of its own."""
    ffn = tiny.dataclasses.replace(tiny.MOE, scorer=PreAttention())
    m = tiny.model(BlockConfig(tiny.ATTN, ffn), repeat=3)
    probe = lambda out, batch: out.routing.logit_BTE
    run = jax.jit(lambda params, batch: model.forward(params, m, batch, probe=probe).probes[0][0])
    batch, params = tiny.document(np.arange(6)[None]), tiny.params(m)
    want_LBTE = run(params, batch)
    block = params["group0"]["block0"]
    other = {"group0": {"block0": block | {"attn": block["attn"] | {"q": block["attn"]["q"] + 0.3}}}}
    got_LBTE = run(params | other, batch)
    np.testing.assert_array_equal(got_LBTE[0], want_LBTE[0])
    assert (np.asarray(got_LBTE[1, 0, 2:]) != want_LBTE[1, 0, 2:]).any()
    moved_LBTE = run(params, batch.replace(token_BT=batch.token_BT + 1))
    assert (np.asarray(moved_LBTE[0]) != want_LBTE[0]).any()


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match=r"activation='tanh' is not one of"):
        PreAttention("tanh")
