"""A model with a group per layer is the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax import specs
from moejax.config import Group
from moejax.losses.loss_free import LossFreeBias
from moejax.model.forward import init
from moejax.model.forward import specs as specs_of
from moejax.serving.generate import complete
from moejax.serving.request import Sampling, make_request
from moejax.serving.unroll import unrolled


def test_worked_example(model):
    """Two groups of 2 x 1 and 1 x 2 blocks become three groups."""
    block = model.cfg.groups[0].blocks[0]
    cfg = dataclasses.replace(model.cfg, groups=(Group((block,), 2), Group((block, block), 1)))
    state = LossFreeBias().init(cfg)
    sides = LossFreeBias().side(
        jax.tree.map(lambda bias_LE: bias_LE + jnp.arange(len(bias_LE))[:, None], state)
    )
    before = dataclasses.replace(model, cfg=cfg, params=init(jax.random.key(1), cfg), sides=sides)
    after = unrolled(before)
    assert [(group.repeat, len(group.blocks)) for group in after.cfg.groups] == [(1, 1), (1, 1), (1, 2)]
    specs.check(after.params, specs_of(after.cfg))
    second = after.params["group1"]["block0"]["attn"]["q"][0]
    np.testing.assert_array_equal(second, before.params["group0"]["block0"]["attn"]["q"][1])
    assert [group[0].prefer_BE.shape for group in after.sides] == [(1, 1, 8)] * 3
    assert after.sides[1][0].prefer_BE[0, 0, 0] == 1.0
    assert unrolled(after) is after


def test_it_writes_the_same_text(model):
    requests = [make_request(model, prompt, Sampling(max_tokens=15)) for prompt in ("def f(x):", "a")]
    stacked, single = (dict(complete(one, requests, 4)) for one in (model, unrolled(model)))
    assert stacked == single
