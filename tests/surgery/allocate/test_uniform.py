"""Equal shares: the best of every layer, of equals the first."""

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.surgery.allocate.uniform import uniform

SCORES = ((None, np.array([[0.1, 0.7, 0.4, 0.2], [0.3, 0.05, 0.9, 0.6]])),)


def test_by_hand():
    ((nothing, keep_LM),) = uniform(SCORES, 2)
    assert nothing is None and keep_LM.dtype == np.int32
    assert keep_LM.tolist() == [[1, 2], [2, 3]]


def test_ranks_of_the_first_layer_lead_to_the_best_of_another():
    """The paper's way to name the experts of later layers gives the same as each layer's own ranking."""
    first_E, later_E = SCORES[0][1]
    expert_of_rank_E = np.argsort(-later_E)[np.argsort(np.argsort(-first_E))]
    assert expert_of_rank_E.tolist() == [1, 2, 3, 0]
    assert sorted(expert_of_rank_E[[1, 2]]) == [2, 3]


def test_of_equals_the_lower_index():
    assert uniform(((np.array([[1.0, 2.0, 1.0, 1.0]]),),), 3)[0][0].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kept", [0, 5])
def test_impossible_numbers_are_refused(kept):
    with pytest.raises(UsageError, match=f"kept={kept} parts of a layer that has 4"):
        uniform(SCORES, kept)


def test_what_is_no_number_is_refused():
    with pytest.raises(UsageError, match="not a number"):
        uniform(((np.array([[1.0, np.nan]]),),), 1)
