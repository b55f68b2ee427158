"""Importance and load by hand, against float64 loops, and at perfect balance."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.losses.load_importance import LoadImportance
from moejax.seams import BlockOut
from tests.losses import seen


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def square_cv(x_E):
    return np.var(x_E) / np.mean(x_E) ** 2


def test_one_token_two_experts_by_hand():
    """Scores (3/4, 1/4): CV^2 = (1/4)^2 / (1/2)^2. Logits (1, 0), k = 1, std 2/2: load (1/2, Phi(-1))."""
    one = ([seen.routing([[[0]]], [[[0.75, 0.25]]], [[[1.0, 0.0]]])], seen.batch([[True]]))
    want = (0.25 + square_cv([0.5, phi(-1)])) / 2
    assert seen.value(LoadImportance(noise=2.0), one) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(seed):
    """Over two micro-batches with absent tokens; noise 3 over six experts."""
    micros = [seen.random(seed), seen.random(seed + 10)]
    per_layer = []
    for layer in range(2):
        importance_E, load_E = np.zeros(6), np.zeros(6)
        for layers, batch in micros:
            routing = layers[layer]
            for b, t in zip(*np.nonzero(batch.valid_BT), strict=True):
                score_E, logit_E = (np.float64(x[b, t]) for x in (routing.score_BTE, routing.logit_BTE))
                importance_E += score_E / score_E.sum()
                lowest = min(logit_E[e] for e in routing.expert_BTK[b, t])
                load_E += [phi((logit - lowest) / 0.5) for logit in logit_E]
        per_layer.append((square_cv(importance_E) + square_cv(load_E)) / 2)
    got = float(seen.value(LoadImportance(noise=3.0), *micros))
    assert got == pytest.approx(np.mean(per_layer), rel=1e-5)


def test_gradient_is_finite_at_perfect_balance_and_where_nobody_is_routed():
    batch, loss = seen.batch(np.ones((1, 3))), LoadImportance()
    for expert in (0, 2):
        routing = seen.routing(np.full((1, 3, 1), expert), np.full((1, 3, 2), 0.5))

        def value(logit_BTE, routing=routing):
            probe = loss.probe(BlockOut(None, None, routing.replace(logit_BTE=logit_BTE)), batch)
            return loss.total((({name: x[None] for name, x in probe.items()},),), ())[0]

        got, slope = jax.value_and_grad(value)(jnp.zeros((1, 3, 2)))
        assert got == 0
        chex.assert_tree_all_finite(slope)


def test_without_noise_there_is_no_load():
    with pytest.raises(UsageError, match=r"noise=0.0 must be positive"):
        LoadImportance(noise=0.0)
