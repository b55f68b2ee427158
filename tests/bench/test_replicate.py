"""Replicas of sharded models train side by side as each would alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import base
from moejax import sharding
from moejax.attention.gqa import Gqa
from moejax.bench import replicate
from moejax.config import MeshConfig
from moejax.dispatch.all_to_all import RaggedAllToAll
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.training import program, step
from moejax.training import state as train_state
from tests.contracts import tiny

SEEDS = (3, 8)
STEPS = 3


def recipe():
    """One layer, its four experts on a device each."""
    ffn = Moe(4, 16, Linear(), TopK(2), RaggedAllToAll())
    model = base.mixtral(tiny.VOCAB, Gqa(num_heads=2, num_kv_heads=1, head_width=8), ffn, layers=1)
    run = base.tiny()
    train = dataclasses.replace(run.train, batch_rows=4, seq_len=6)
    return dataclasses.replace(run, model=model, train=train, mesh=MeshConfig(expert=4))


def functions():
    """(key -> state, (state, batch, key) -> (state, next-token loss)) of the recipe."""
    bound = program.build(recipe())
    parts = {"m": bound.run.model, "losses": bound.losses, "optimizer": bound.optimizer}

    def one(state, batch, key):
        state, metrics = step.train_step(state, batch, key, **parts)
        return state, metrics["loss/next_token"]

    return functools.partial(train_state.init, **parts), one


def batches(seed: int):
    return [tiny.batch(100 * seed + i, rows=4) for i in range(STEPS)]


def alone(seeds):
    """(last state, losses) of every seed, trained on four devices after one another."""
    mesh = sharding.make_mesh(recipe().mesh)
    start, one = map(jax.jit, functions())
    found = []
    with jax.set_mesh(mesh):
        for seed in seeds:
            key = jax.random.key(seed)
            state, losses = start(key), []
            for batch in batches(seed):
                state, loss = one(state, sharding.place_rows(batch, mesh), key)
                losses.append(loss)
            found.append(jax.tree.map(np.asarray, (state, losses)))
    return found


def side_by_side(seeds):
    """The same of all seeds at once."""
    mesh = replicate.make_mesh(len(seeds), recipe().mesh)
    with jax.set_mesh(mesh):
        start, one = (jax.jit(replicate.replicate(fn, mesh)) for fn in functions())
        key = replicate.place([jax.random.key_data(jax.random.key(seed)) for seed in seeds], mesh)
        key = jax.random.wrap_key_data(key)
        state, losses = start(key), []
        for each in zip(*map(batches, seeds), strict=True):
            state, loss = one(state, replicate.place(each, mesh, ("batch",)), key)
            losses.append(loss)
    up = state.params["group0"]["block0"]["ffn"]["experts"]["up"]
    assert up.sharding.spec[0] == replicate.AXIS and up.addressable_shards[0].data.size == up.size // 8
    stacked = jax.tree.map(np.asarray, (state, losses))
    return [jax.tree.map(lambda leaf, r=r: leaf[r], stacked) for r in range(len(seeds))]


def test_seeds_train_as_they_do_alone():
    """Two seeds of four devices of expert parallelism each: states and losses, and they are not one seed."""
    together, separate = side_by_side(SEEDS), alone(SEEDS)
    for got, want in zip(together, separate, strict=True):
        tiny.close(got, want, 1e-6)
    assert together[0][1][0] != together[1][1][0]


def test_too_few_devices():
    with pytest.raises(UsageError, match="3 replicas of 4 devices need 12, 8 are there"):
        replicate.make_mesh(3, MeshConfig(expert=4))
