"""Random scores are numbers of their seed."""

import numpy as np

from moejax.surgery.score.random import Random
from tests.contracts import tiny


def test_a_seed_is_a_ranking():
    m = tiny.model()
    ((nothing, score_LE),) = Random(1).score(None, m, [])
    assert nothing is None and score_LE.shape == (2, 4)
    np.testing.assert_array_equal(score_LE, Random(1).score(None, m, [])[0][1])
    assert (score_LE != Random(2).score(None, m, [])[0][1]).all()
