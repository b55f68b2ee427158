"""What losses count by hand, and the product's slope where a careless form has none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from moejax.losses.counts import product, seen_by_row
from tests.losses import seen


def test_gradient_is_finite_at_perfect_balance_and_without_scores():
    layer, valid_BT = seen.routing([[[0], [1]]], np.ones((1, 2, 2))), np.ones((1, 2), bool)
    value = lambda score_BTE: product(seen_by_row(layer.replace(score_BTE=score_BTE), valid_BT))[0]
    for score in (0.5, 1e-30, 0.0):
        chex.assert_tree_all_finite(jax.grad(value)(jnp.full((1, 2, 2), score)))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_rows_are_seen_alike(self):
        """Slots (2, 1, 1) of four, shares of the two valid tokens summed; the third token is absent."""
        layer = seen.routing(
            [[[0, 1], [0, 2], [3, 3]]], [[[0.5, 0.3, 0.2], [0.6, 0.0, 0.4], [1.0, 1.0, 1.0]]]
        )
        got = self.variant(seen_by_row)(layer, np.array([[True, True, False]]))
        for name, want in (("slots", [2.0, 1.0, 1.0]), ("share", [1.1, 0.3, 0.6]), ("tokens", [2.0])):
            np.testing.assert_allclose(np.ravel(got[name])[: len(want)], want, rtol=1e-6)
