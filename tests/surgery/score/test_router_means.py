"""Means that can be counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.surgery.score.base import Seen
from moejax.surgery.score.router_means import chosen, gates, logits

LOGIT_NE = np.array([[2.0, 1.0, -4.0], [1.0, 3.0, -2.0]], np.float32)
# The second token has one empty slot, which is marked by expert 3.
SEEN = Seen(
    jnp.asarray(LOGIT_NE),
    jnp.array([[0, 1], [1, 3]]),
    jnp.array([[0.75, 0.25], [1.0, 0.0]]),
    jnp.ones(2, bool),
)


@pytest.mark.parametrize(
    ("measure", "mean_E"), [(chosen, [0.5, 1, 0]), (gates, [0.375, 0.625, 0]), (logits, [1.5, 2, -3])]
)
def test_by_hand(measure, mean_E):
    np.testing.assert_allclose(np.asarray(measure(SEEN, None)).mean(axis=0), mean_E)
