"""A prompt that has passed the first router alone says the same about it as one that passed the model."""

import dataclasses

import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig, Group
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import forward
from moejax.seams import Side
from moejax.surgery.retrieval import nearest, pooled, through_first_router
from moejax.surgery.score.expert_utility import ExpertUtility
from moejax.surgery.take import per_layer
from tests.contracts import tiny

DENSE, MOE = BlockConfig(tiny.ATTN, Dense(8)), BlockConfig(tiny.ATTN, tiny.MOE)


def test_the_first_router_sees_what_it_saw():
    """A dense layer, then twice (dense, routed, dense): two dense blocks and the first router are left."""
    m = dataclasses.replace(tiny.model(), groups=(Group((DENSE,), 1), Group((DENSE, MOE, DENSE), 2)))
    params, batch = tiny.params(m), tiny.batch(0)
    prefer = np.random.default_rng(0).standard_normal((2, 1, 4)).astype(np.float32)
    sides = ((Side(),), (Side(), Side(prefer_BE=prefer), Side()))
    short, cut, own = through_first_router(params, m, sides)
    sp.check(short, forward.specs(cut))
    assert cut.num_layers == 3
    whole = per_layer(ExpertUtility().score(params, m, [batch], sides))
    first = per_layer(ExpertUtility().score(short, cut, [batch], own))
    assert first.shape == (1, 4)
    np.testing.assert_allclose(first[0], whole[0], rtol=1e-5)


def test_without_routers_there_is_nothing_to_find():
    m = tiny.model(DENSE)
    with pytest.raises(UsageError, match="no routers"):
        through_first_router(tiny.params(m), m)


def test_nearest_and_pooled_by_hand():
    tasks = {"a": ((np.array([[0.0, 1.0], [9.0, 9.0]]),),), "b": ((np.array([[1.0, 0.0], [0.0, 0.0]]),),)}
    assert nearest(tasks, ((np.array([[0.4, 0.5]]),),)) == "a"
    assert nearest(tasks, ((np.array([[0.6, 0.5]]),),)) == "b"
    assert pooled(list(tasks.values()))[0][0].tolist() == [[0.5, 0.5], [4.5, 4.5]]
