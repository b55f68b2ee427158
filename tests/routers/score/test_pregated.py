"""The router in front of the network."""

import dataclasses

import jax
import numpy as np
import pytest

from moejax import specs as sp
from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, Group, MeshConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import forward as model
from moejax.routers.score.pregated import Pregated
from tests.contracts import tiny

BLOCK = BlockConfig(Gqa(num_heads=2, num_kv_heads=2, head_width=4), Dense(8))
PREGATED = Pregated(8, (Group((BLOCK,)),))


def test_published_number_of_parameters():
    """17,965,063 with biases and an MLP of two matrices; here no biases and a third matrix."""
    published = Pregated(512, (Group((BlockConfig(Gqa(4, 4, 128), Dense(512)),)),))
    m = dataclasses.replace(tiny.model(), vocab=32_000)
    biases, third = 4 * 512 + 2 * 512 + 7, 512 * 512
    assert sp.count(published.shared_specs(m, 7)) == 17_965_063 - biases + third
    assert published.specs(m, 7) == {}


def test_every_layer_routes_alike_by_the_token_ids():
    """Whatever the backbone does: other weights of it change no expert, another token changes later ones."""
    m = tiny.model(BlockConfig(tiny.ATTN, dataclasses.replace(tiny.MOE, scorer=PREGATED)), repeat=3)
    probe = lambda out, batch: out.routing.score_BTE
    run = jax.jit(lambda params, batch: model.forward(params, m, batch, probe=probe).probes[0][0])
    batch, params = tiny.document(np.arange(6)[None]), tiny.params(m)
    score_LBTE = np.asarray(run(params, batch))
    assert (score_LBTE == score_LBTE[:1]).all()
    backbone = {"group0": jax.tree.map(lambda w: w + 1, params["group0"]), "embed": params["embed"] + 1}
    np.testing.assert_array_equal(run(params | backbone, batch), score_LBTE)
    other = np.asarray(run(params, batch.replace(token_BT=batch.token_BT + (np.arange(6) == 3))))
    np.testing.assert_array_equal(other[:, :, :3], score_LBTE[:, :, :3])
    assert (np.abs(other - score_LBTE)[:, :, 3:].max(-1) > 1e-7).all()


def test_all_of_the_router_learns_through_the_scores():
    m, batch = tiny.model(), tiny.document(np.arange(6)[None])
    i = tiny.route_in(np.zeros((1, 6, 1), np.float32), batch)

    def total(p):
        logit_BTE, _ = PREGATED.prepare(p, m, batch, None)
        return PREGATED.score({}, i.replace(shared={"read_me": logit_BTE}))[1][..., 0].sum()

    p = sp.init(jax.random.key(0), PREGATED.shared_specs(m, 4))
    slope = jax.jit(jax.grad(total), compiler_options=tiny.QUICK_COMPILE)(p)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"scorer.width=8 is not divisible by mesh.fsdp=3"):
        PREGATED.check_mesh(MeshConfig(fsdp=3))
    with pytest.raises(UsageError, match=r"num_kv_heads=2 is not divisible by mesh.tensor=4"):
        PREGATED.check_mesh(MeshConfig(tensor=4))
    with pytest.raises(UsageError, match=r"scorer.groups is empty"):
        Pregated(8, ())
