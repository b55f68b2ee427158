"""Next-token loss by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.losses.next_token import NextToken
from moejax.model import forward as model
from tests.contracts import tiny
from tests.losses import seen

M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE), vocab=2, width=2)
PARAMS = {"embed": jnp.eye(2)}  # so that the hidden states are the logits


def stats(logits_BTV, target_BT, weight_BT):
    batch = seen.batch(np.ones(np.shape(target_BT)))
    batch = batch.replace(target_BT=jnp.array(target_BT), weight_BT=jnp.array(weight_BT, jnp.float32))
    output = types.SimpleNamespace(hidden_BTD=jnp.array(logits_BTV, jnp.float32))
    return NextToken().stats(PARAMS, M, (), output, batch)


def value(*args):
    return float(NextToken().total(stats(*args), ())[0])


def test_two_tokens_by_hand():
    """p(target) is 1/4 and 1/2: (log 4 + log 2) / 2; a target of weight 0 does not count, one of 3 thrice."""
    logits = np.log([[[1.0, 3.0], [2.0, 2.0]]])
    assert value(logits, [[0, 1]], [[1, 1]]) == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert value(logits, [[0, 1]], [[1, 0]]) == pytest.approx(np.log(4))
    assert value(logits, [[0, 1]], [[3, 1]]) == pytest.approx((3 * np.log(4) + np.log(2)) / 4)
    assert value(logits, [[0, 1]], [[0, 0]]) == 0


def test_micro_batches_weigh_by_their_targets():
    """One target of log 4 and two of log 2: log 4 / 3 + 2 log 2 / 3, not the mean of the two means."""
    a, b = stats(np.log([[[1.0, 3.0]]]), [[0]], [[1]]), stats(np.zeros((1, 2, 2)), [[0, 1]], [[1, 1]])
    loss = NextToken().total({name: a[name] + b[name] for name in a}, ())[0]
    assert float(loss) == pytest.approx(4 / 3 * np.log(2))


def test_scaled_and_biased_logits_have_the_slopes_of_their_softmax():
    """Against finite differences, along two directions, of the softmax over the logits of a whole model."""
    ends = {"norm": "layer", "embed_scale": 3.0, "unembed_bias": True, "logit_scale": 0.5, "tied": False}
    m = tiny.float64(tiny.model(BlockConfig(tiny.ATTN, tiny.MOE, residual_scale=0.3), repeat=1, **ends))
    batch, rng = tiny.batch(0), np.random.default_rng(0)
    params, *ways = (
        jax.tree.map(lambda w, s=s: w * (s == 0) + 0.1 * rng.standard_normal(w.shape), tiny.host_params(m))
        for s in range(3)
    )

    def plain(params):
        log_BTV = jax.nn.log_softmax(model.forward(params, m, batch).logits_BTV)
        return -jnp.sum(
            jnp.take_along_axis(log_BTV, batch.target_BT[..., None], -1)[..., 0] * batch.weight_BT
        )

    def chunked(params):
        return NextToken().stats(params, m, (), model.forward(params, m, batch), batch)["nll"]

    with jax.enable_x64(True):
        plain = jax.jit(plain, compiler_options=tiny.QUICK_COMPILE)
        value, slope = jax.jit(jax.value_and_grad(chunked), compiler_options=tiny.QUICK_COMPILE)(params)
        assert float(value) == pytest.approx(float(plain(params)), rel=1e-12)
        for way in ways:
            up, down = (plain(jax.tree.map(lambda w, d, s=s: w + s * d, params, way)) for s in (1e-5, -1e-5))
            along = sum(
                np.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True)
            )
            assert along == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_certain_and_right_is_zero():
    assert value([[[100.0, 0.0]]], [[0]], [[1]]) == 0
