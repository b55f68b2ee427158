"""Routers that remember, in a decoder: decoding with a cache, packed documents, meshes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, Group
from moejax.ffn.dense import Dense
from moejax.model import forward as model
from moejax.routers.score.pregated import Pregated
from moejax.routers.score.recurrent import Recurrent
from moejax.routers.score.token_graph import AttentionAware, SimilarityAware
from tests.contracts import tiny
from tests.contracts.cases import each

WINDOW = dataclasses.replace(tiny.ATTN, window=3)
ROUTER = (Group((BlockConfig(Gqa(num_heads=2, num_kv_heads=2, head_width=4), Dense(8)),), 2),)
SCORERS = {
    "recurrent": Recurrent(3, logit_residual=0.5),
    "attention_aware": AttentionAware(share=0.7),
    "similarity_aware": SimilarityAware(),
    "pregated": Pregated(8, ROUTER),
}


@functools.lru_cache
def decoder(scorer):
    """Two sparse layers with a dense one between them."""
    sparse = BlockConfig(WINDOW, dataclasses.replace(tiny.MOE, scorer=SCORERS[scorer]))
    dense = BlockConfig(tiny.ATTN, Dense(8))
    groups = (Group((sparse, dense)), Group((sparse,)))
    return tiny.float64(dataclasses.replace(tiny.model(), groups=groups))


@functools.lru_cache
def program(m):
    """((logits, scores of every sparse layer), cache)."""

    def run(params, batch, cache=None):
        probe = lambda out, _: {} if out.routing is None else {"score": out.routing.score_BTE}
        output = model.forward(params, m, batch, cache=cache, probe=probe)
        return (output.logits_BTV, [score[0] for score in jax.tree.leaves(output.probes)]), output.cache

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


@each("scorer", SCORERS)
def test_decoding_equals_the_full_pass(scorer):
    """A prompt in two chunks, then one token at a time; the cache has room to spare."""
    m = decoder(scorer)
    batch = tiny.document(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 7)))
    with jax.enable_x64(True):
        params = tiny.host_params(m)
        want = program(m)(params, batch)[0]
        cache, parts = model.init_cache(m, 2, 9), []
        for first, end in itertools.pairwise((0, 3, 5, 6, 7)):
            part, cache = program(m)(
                params, jax.tree.map(lambda x, s=slice(first, end): x[:, s], batch), cache
            )
            parts.append(jax.tree.map(np.asarray, part))
    together = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    tiny.close(together, want, 1e-11)


@each("scorer", SCORERS)
def test_packed_documents_are_as_if_alone_and_absent_tokens_as_if_cut_off(scorer):
    m, cut, length = decoder(scorer), 3, 7
    token_BT = np.random.default_rng(1).integers(0, tiny.VOCAB, (1, length + 1))
    at = np.arange(length + 1)[None]
    packed = tiny.document(token_BT).replace(
        pos_BT=np.where(at < cut, at, at - cut).astype(np.int32),
        seg_BT=np.where(at < length, 1 + (at >= cut), 0).astype(np.int32),
        valid_BT=at < length,
    )
    with jax.enable_x64(True):
        together = program(m)(tiny.host_params(m), packed)[0]
        for part in (slice(0, cut), slice(cut, length)):
            alone = program(m)(tiny.host_params(m), tiny.document(token_BT[:, part]))[0]
            tiny.close(jax.tree.map(lambda x, part=part: x[:, part], together), alone, 1e-11)


@each("scorer", SCORERS)
def test_a_mesh_changes_neither_values_nor_slopes(scorer):
    m, batch = decoder(scorer), tiny.document(np.arange(24).reshape(8, 3))
    # The one head of a similarity does not split.
    axes = {"data" if scorer == "similarity_aware" else "tensor": 2, "fsdp": 2, "expert": 2}
    total = lambda params, batch: jnp.sum(jnp.sin(model.forward(params, m, batch).logits_BTV))
    run = lambda: jax.jit(jax.value_and_grad(total), compiler_options=tiny.QUICK_COMPILE)
    with jax.enable_x64(True):
        want = run()(tiny.host_params(m), batch)
        with tiny.on_mesh(**axes) as mesh:
            got = run()(tiny.params(m, mesh), tiny.sharding.place_rows(batch, mesh))
    tiny.close(got, want, 1e-10)
