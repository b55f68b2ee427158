"""Noise of a learned size, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routers.score.noisy import Noisy
from moejax.routers.select.top_k import TopK
from tests.contracts import tiny

LOGIT_TE = np.array([[2, 1, 0], [0.5, 1.5, 1], [1, 0, 3], [0.2, 0.1, 0]], np.float32)
SIZE = {"w": jnp.zeros((3, 3)), "noise": jnp.full((3, 3), np.log(np.expm1(0.5)) / 3, jnp.float32)}


def test_published_gates_without_noise():
    """Softmax over the best two of each row."""
    i = tiny.route_in(LOGIT_TE[None], tiny.document(np.zeros((1, 4))))
    p = {"w": jnp.eye(3), "noise": jnp.ones((3, 3))}
    logit_BTE, score_BTE, _ = Noisy().score(p, i)
    np.testing.assert_allclose(logit_BTE[0], LOGIT_TE, rtol=1e-6)
    expert_BTK, gate_BTK, _ = TopK(2).select({}, score_BTE, score_BTE, i.batch.valid_BT, None)
    got_TE = np.zeros((4, 3))
    np.put_along_axis(got_TE, np.asarray(expert_BTK[0]), np.asarray(gate_BTK[0]), -1)
    want_TE = [[0.7311, 0.2689, 0], [0, 0.6225, 0.3775], [0.1192, 0, 0.8808], [0.525, 0.475, 0]]
    np.testing.assert_allclose(got_TE, want_TE, atol=5e-5)


def test_the_noise_has_the_size_that_the_token_asks_for():
    """softplus(x W_noise) = 0.5 for x = (1, 1, 1) on logits of 0; another key is other noise."""
    i = tiny.route_in(np.ones((1, 20_000, 3), np.float32), tiny.document(np.zeros((1, 20_000))))
    draw = lambda seed: np.asarray(Noisy().score(SIZE, i.replace(key=jax.random.key(seed)))[0])
    assert abs(np.std(draw(0)) - 0.5) < 0.01 and abs(np.mean(draw(0))) < 0.01
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).mean() > 0.99


def test_the_size_is_learned_through_the_scores():
    i = tiny.route_in(LOGIT_TE[None], tiny.document(np.zeros((1, 4)))).replace(key=jax.random.key(0))
    slope = jax.grad(lambda p: Noisy().score(p, i)[1][..., 0].sum())(SIZE)
    assert np.abs(slope["noise"]).max() > 1e-3
