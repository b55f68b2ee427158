"""Published gates as pairs of a scorer and a selector, with the numbers of FSMoE's brief."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.routers.score.cosine import Cosine
from moejax.routers.score.linear import Linear
from moejax.routers.score.noisy import Noisy
from moejax.routers.select.top_k import TopK
from tests.contracts import oracles, tiny
from tests.routers.select.by_hand import select, weights

LOGIT_TE = np.array([[2, 1, 0], [0.5, 1.5, 1], [1, 0, 3], [0.2, 0.1, 0]], np.float32)


def scores(scorer, x_TD, **p):
    i = tiny.route_in(np.asarray(x_TD, np.float32)[None], tiny.document(np.zeros((1, len(x_TD)))))
    return scorer.score(p, i)[1][0]


@pytest.mark.parametrize(
    ("scorer", "p"), [(Linear(), {"w": jnp.eye(3)}), (Noisy(), {"w": jnp.eye(3), "noise": jnp.ones((3, 3))})]
)
def test_gshard(scorer, p):
    """Softmax over the kept logits is the softmax over all, renormalised; without a key there is no noise."""
    got_TE = weights(TopK(2), scores(scorer, LOGIT_TE, **p))
    want_TE = [[0.7311, 0.2689, 0], [0, 0.6225, 0.3775], [0.1192, 0, 0.8808], [0.525, 0.475, 0]]
    np.testing.assert_allclose(got_TE, want_TE, atol=5e-5)


def test_sigmoid_top_1():
    score_TE = scores(Linear("sigmoid"), LOGIT_TE, w=jnp.eye(3))
    experts, gates, _ = select(TopK(1, renormalise=False), score_TE)
    assert experts == [[0], [1], [2], [0]]
    np.testing.assert_allclose(gates[:, 0], [0.8808, 0.8176, 0.9526, 0.5498], atol=5e-5)


@pytest.mark.parametrize(
    ("temperature", "want"), [(0.07, [0.0036, 0.0620, 0.9345]), (0.5, [0.2140, 0.3192, 0.4668])]
)
def test_x_moe(temperature, want):
    """x = (3, 4) against (1, 0), (0, 1), (1, 1): cosines 0.6, 0.8, 0.9899; softmax over the kept ones."""
    p = {
        "project": jnp.eye(2),
        "expert": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        "log_factor": -jnp.log(temperature),
    }
    score_TE = scores(Cosine(width=2), [[3, 4]], **p)
    np.testing.assert_allclose(weights(TopK(3), score_TE)[0], want, atol=5e-5)
    two = oracles.softmax(np.array([0.8, 7 / np.sqrt(50)]) / temperature)
    np.testing.assert_allclose(weights(TopK(2), score_TE)[0], [0, *two], rtol=1e-5)
