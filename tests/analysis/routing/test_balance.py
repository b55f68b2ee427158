"""Balance of routers and information between layers, by the numbers of the paper's definitions."""

import numpy as np
import pytest

from moejax.analysis.routing import balance
from tests.analysis.routing import traces

PROBS = np.array([[0.2408, 0.3423, 0.2789, 0.1380], [0.2920, 0.2704, 0.2020, 0.2356]])


def scored(probs, experts):
    scores = np.asarray(probs)[None].astype(np.float16)
    return next(iter(traces.one_layer(experts, scores.shape[-1], score_LNE=scores).layers()))


@pytest.mark.parametrize("row, top, inner, outer", [(0, [1, 2], 1.2273, 0.6213), (1, [0, 1], 1.0798, 0.5624)])
def test_balance_by_hand(row, top, inner, outer):
    layer = scored(PROBS[[row]], [top])
    np.testing.assert_allclose(balance.inner_balance(layer.score_NE), inner, rtol=2e-3)
    np.testing.assert_allclose(balance.outer_balance(layer), outer, rtol=2e-3)


def test_entropy_by_hand():
    np.testing.assert_allclose(balance.score_entropy(PROBS[:1]), 1.3392, atol=1e-4)
    np.testing.assert_allclose(balance.score_entropy(np.full((3, 4), 0.25)), np.log(4))
    assert balance.score_entropy(np.eye(4)) == 0.0


def test_load_by_hand():
    (layer,) = traces.one_layer([[0, 1], [0, 2], [0, 4]], 4).layers()  # 4 is empty
    np.testing.assert_allclose(balance.load(layer), [0.6, 0.2, 0.2, 0.0])
    np.testing.assert_allclose(balance.max_violation(balance.load(layer)), 1.4)
    assert balance.max_violation(np.full(4, 0.25)) == 0.0


SURE = np.array([[0.7, 0.2, 0.05, 0.05]])


@pytest.mark.parametrize(
    "other, nats", [([0.6, 0.3, 0.05, 0.05], 1.0397), ([0.97, 0.01, 0.01, 0.01], 0.5623), ([0.25] * 4, 0.0)]
)
def test_binned_information_by_hand(other, nats):
    np.testing.assert_allclose(balance.binned_information(SURE, np.array([other])), nats, atol=5e-5)


def test_choices_of_layers_that_agree_and_that_do_not():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 5000))
    trace = traces.trace(np.stack([first, 3 - first, second])[..., None], 4)
    a, mirrored, apart = trace.layers()
    np.testing.assert_allclose(balance.choice_information(a, mirrored), np.log(4), atol=1e-3)
    assert balance.choice_information(a, apart) < 2e-3
    assert balance.choice_information(a, mirrored, seed=0) < 2e-3
