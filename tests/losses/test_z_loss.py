"""Router z-loss by hand and against float64 loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.losses.z_loss import RouterZ
from tests.losses import seen


def test_two_tokens_by_hand():
    """logsumexp of (0, 0) is log 2, of (log 3, 0) log 4; the third token is absent; layers are averaged."""
    scores = np.full((1, 3, 2), 0.5)
    layer = seen.routing(np.zeros((1, 3, 1)), scores, [[[0, 0], [np.log(3), 0], [50, 50]]])
    zero = seen.routing(np.zeros((1, 3, 1)), scores, np.full((1, 3, 2), -np.log(2)))
    batch = seen.batch([[True, True, False]])
    mean = (np.log(2) ** 2 + np.log(4) ** 2) / 2
    assert seen.value(RouterZ(), ([layer], batch)) == pytest.approx(mean)
    assert seen.value(RouterZ(), ([layer, zero], batch)) == pytest.approx(mean / 2)
    assert seen.value(RouterZ(), ([zero], batch)) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10_000), st.booleans())
def test_equals_loops(seed, saturated):
    """Micro-batches of different size weigh by their tokens; logits of hundreds do not overflow."""
    micros = [seen.random(seed, saturated=saturated), seen.random(seed + 1, T=3, saturated=saturated)]
    per_layer = []
    for layer in range(2):
        logits = [layers[layer].logit_BTE[batch.valid_BT].astype(np.float64) for layers, batch in micros]
        logit_NE = np.concatenate(logits)
        top_N = logit_NE.max(-1)
        per_layer.append(np.mean((np.log(np.exp(logit_NE - top_N[:, None]).sum(-1)) + top_N) ** 2))
    assert float(seen.value(RouterZ(), *micros)) == pytest.approx(np.mean(per_layer), rel=1e-5)
