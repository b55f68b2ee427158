"""The program's own arithmetic on losses made by hand; the oracle's numbers are in test_route_oracle.py."""

import types

import numpy as np
import pytest

from moejax.analysis.route_oracle import route_table, search_parallel
from moejax.bench.duo_routes import Tried

ROUTES = route_table(2)


def tried(loss_RBT, token_BT) -> Tried:
    """As if a model of two layers had been tried."""
    loss_RN = np.asarray(loss_RBT, np.float32).reshape(4, -1)
    oracle = search_parallel(
        lambda part_RL: loss_RN[part_RL @ [2, 1]][:, None], ROUTES, np.ones((1, loss_RN.shape[1]))
    )
    batch = types.SimpleNamespace(token_BT=np.array(token_BT))
    return Tried(None, 0, batch, ROUTES, loss_RN, oracle)


@pytest.fixture
def three():
    """Losses of small-small, small-big, big-small, big-big for three tokens in three rows."""
    loss_TR = np.array([[2, 1, 3, 1.5], [0.5, 0.9, 0.4, 0.8], [4, 3.9, 4.1, 3.3]])
    return tried(loss_TR.T[:, :, None], [[0], [1], [0]])


def test_budgets_by_hand(three):
    """One big layer beats all big; of the two routes with one big layer one is 2.2167 on average."""
    assert three.oracle.loss(1) == pytest.approx(1.7667, abs=5e-5)
    assert three.oracle.loss(2) == pytest.approx(1.8667, abs=5e-5)
    assert three.of_budget(1).mean() == pytest.approx((1.9333 + 2.5) / 2, abs=5e-5)
    assert three.equally_many(1) == pytest.approx(three.oracle.loss(1))
    np.testing.assert_allclose(three.of_budget(2, rows=2), [[1.5, 3.3]])
    np.testing.assert_allclose(three.share_big(1), [1 / 3, 2 / 3])


def test_routes_by_id_are_tested_on_other_rows(three):
    """Rows 0 and 2 choose: id 0 takes big-big (1.5 + 3.3 is least), and so does the new id 1.

    Its loss is .8, as all big has it; the best route has .4: nothing of the gain is predicted.
    """
    assert three.share_of_gain_by_id() == 0


def test_an_id_that_decides_gives_all_of_the_gain():
    """Id 0 is best with small-big, id 1 with big-small, in both rows."""
    row_RT = [[1, 1], [0, 1], [1, 0], [0.5, 0.5]]
    found = tried(np.stack([row_RT, row_RT], axis=1), [[0, 1], [0, 1]])
    assert found.share_of_gain_by_id() == pytest.approx(1)
