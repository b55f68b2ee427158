"""The state before the first step."""

import functools

import jax

from moejax import specs as sp
from moejax.config import BlockConfig, OptimConfig
from moejax.losses.loss_free import LossFreeBias
from moejax.losses.next_token import NextToken
from moejax.model import forward as model
from moejax.training import optimizer, state
from tests.contracts import tiny

M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE))
LOSSES = (NextToken(), LossFreeBias())


def test_it_has_all_that_is_updated():
    adamw = optimizer.make(OptimConfig(), 10, model.specs(M))
    now = jax.eval_shape(
        functools.partial(state.init, m=M, losses=LOSSES, optimizer=adamw), jax.random.key(0)
    )
    sp.check(now.params, model.specs(M))
    assert [leaf.shape for leaf in jax.tree.leaves(now.loss_state)] == [(2, 4)]
    means = next(part.mu for part in now.opt_state if hasattr(part, "mu"))
    assert jax.tree.map(lambda x: x.shape, means) == jax.tree.map(lambda x: x.shape, now.params)
    assert now.step.shape == now.skipped.shape == ()
