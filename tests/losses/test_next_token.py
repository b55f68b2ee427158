"""Next-token loss by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.losses.next_token import NextToken
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


def test_certain_and_right_is_zero():
    assert value([[[100.0, 0.0]]], [[0]], [[1]]) == 0
