"""Group-limited top-k by hand: six experts in three groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.routers.select.group_limited import GroupLimited
from moejax.routers.select.top_k import TopK
from tests.routers.select.by_hand import select, weights

SCORE = [[0.9, 0.1, 0.6, 0.5, 0.3, 0.4]]  # best of a group: 0.9, 0.6, 0.4; best two: 1.0, 1.1, 0.7
INF = float("inf")


@pytest.mark.parametrize(
    ("best", "keep_groups", "experts"), [(1, 1, [0, 1]), (2, 1, [2, 3]), (2, 2, [0, 2]), (1, 3, [0, 2])]
)
def test_the_groups_are_chosen_first(best, keep_groups, experts):
    """V2 (best=1) prefers the group with the best expert, V3 (best=2) the one with the best pair."""
    selector = GroupLimited(2, num_groups=3, keep_groups=keep_groups, best=best, renormalise=False)
    (got,), (gates,), _ = select(selector, SCORE)
    assert got == experts
    np.testing.assert_allclose(gates, [SCORE[0][e] for e in experts])


def test_a_preference_counts_in_the_choice_alone():
    """0.5 more for expert 5 brings its group in; its gate is its own 0.4, renormalised and scaled."""
    choice = [[*SCORE[0][:5], 0.9]]
    experts, gates, _ = select(GroupLimited(2, num_groups=3, keep_groups=1, scale=2.5), SCORE, choice)
    assert experts == [[5, 4]]
    np.testing.assert_allclose(gates, [[2.5 * 0.4 / 0.7, 2.5 * 0.3 / 0.7]], rtol=1e-6)


def test_a_correction_is_a_preference_that_is_kept_as_a_parameter():
    """Without a gradient, so that training does not take it for a weight."""
    p = {"correction": np.array([0, 0, 0, 0, 0, 0.5], np.float32)}
    limited = GroupLimited(2, num_groups=3, keep_groups=1, scale=2.5, correction=True)
    assert {name: spec.shape for name, spec in limited.specs(None, 6).items()} == {"correction": (6,)}
    experts, gates, _ = select(limited, SCORE, p=p)
    assert experts == [[5, 4]]
    np.testing.assert_allclose(gates, [[2.5 * 0.4 / 0.7, 2.5 * 0.3 / 0.7]], rtol=1e-6)
    score_BTE, valid_BT = jnp.array([SCORE]), jnp.ones((1, 1), bool)
    slope = jax.grad(lambda p: limited.select(p, score_BTE, score_BTE, valid_BT, None)[1][0, 0, 0])(p)
    assert (slope["correction"] == 0).all()


def test_one_allowed_expert_speaks_for_its_group():
    choice = [[0.9, -INF, -INF, -INF, 0.3, 0.4]]
    assert select(GroupLimited(2, num_groups=3, keep_groups=2), SCORE, choice)[0] == [[0, 5]]
    assert select(GroupLimited(2, num_groups=3, keep_groups=1), SCORE, choice)[0] == [[0, 6]]


def test_all_groups_kept_is_top_k():
    score = np.random.default_rng(0).random((20, 6))
    limited = GroupLimited(3, num_groups=3, keep_groups=3)
    np.testing.assert_array_equal(weights(limited, score), weights(TopK(3), score))


def test_other_names_for_groups_and_within_groups_change_nothing_else():
    rng = np.random.default_rng(1)
    score = rng.random((20, 6))
    order_E = (2 * rng.permutation(3)[:, None] + rng.permuted([[0, 1]] * 3, axis=1)).reshape(-1)
    limited = GroupLimited(2, num_groups=3, keep_groups=2)
    np.testing.assert_allclose(
        weights(limited, score[:, order_E]), weights(limited, score)[:, order_E], rtol=1e-6
    )


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.keep_groups=4 of selector.num_groups=3 is impossible"):
        GroupLimited(2, num_groups=3, keep_groups=4)
    with pytest.raises(UsageError, match=r"num_experts=8 is not divisible by selector.num_groups=3"):
        GroupLimited(2, num_groups=3, keep_groups=1).check(8, None)
    with pytest.raises(UsageError, match=r"selector.k=5 experts out of selector.keep_groups=2 groups of 2"):
        GroupLimited(5, num_groups=3, keep_groups=2).check(6, None)
    with pytest.raises(UsageError, match=r"selector.best=2 experts of a group of 1 is impossible"):
        GroupLimited(1, num_groups=3, keep_groups=2).check(3, None)
