"""Expert choice by hand, against sorting in numpy, and on eight devices."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax import sharding
from moejax.errors import UsageError
from moejax.routers.select.expert_choice import ExpertChoice
from tests.contracts import oracles, tiny
from tests.routers.select.by_hand import select, weights

LOGIT = np.array([[2, 1, 0], [0.5, 1.5, 1], [1, 0, 3], [0.2, 0.1, 0]])
SCORE = oracles.softmax(LOGIT)
TWO = 1.5  # factor: each of three experts takes 1.5 * 4 / 3 = 2 of four tokens


def test_each_expert_takes_its_two_best_tokens():
    """FSMoE's brief: experts take tokens 0 and 3; 1 and 3; 2 and 1."""
    weight_TE = weights(ExpertChoice(3, TWO), SCORE)
    want_TE = [[0.6652, 0, 0], [0, 0.5065, 0.3072], [0, 0, 0.8438], [0.3672, 0.3322, 0]]
    np.testing.assert_allclose(weight_TE, want_TE, atol=5e-5)


def test_the_printed_form_is_a_softmax_over_tokens():
    """Of logits, if scores are their sigmoids: expert 0 takes tokens 0 and 2; nobody takes token 3."""
    weight_TE = weights(ExpertChoice(3, TWO, over="tokens"), 1 / (1 + np.exp(-LOGIT)))
    np.testing.assert_allclose(weight_TE[:, 0], [0.7311, 0, 0.2689, 0], atol=5e-5)
    np.testing.assert_allclose(weight_TE.sum(0), 1, rtol=1e-6)
    assert not weight_TE[3].any()


def test_sizes_round_up_and_never_exceed_the_tokens():
    """FSMoE's 2 * 1.2 * 256 / 8 = 76.8 is 77."""
    score = np.random.default_rng(0).random((256, 8))
    assert (weights(ExpertChoice(8, 2 * 1.2), score) > 0).sum(0).tolist() == [77] * 8
    assert (weights(ExpertChoice(3, 9.0), SCORE) > 0).all()


def test_equal_scores_go_to_the_first_tokens():
    assert select(ExpertChoice(2, 1.0), np.full((4, 2), 0.5))[0] == [[0, 1], [0, 1], [2, 2], [2, 2]]


def test_a_token_keeps_the_experts_that_it_wants_most():
    experts, gates, _ = select(ExpertChoice(1, 3.0), SCORE)
    assert experts == [[0], [1], [2], [0]]
    np.testing.assert_allclose(gates[:, 0], SCORE.max(-1), rtol=1e-6)


def test_absent_tokens_are_not_taken():
    """Without token 1, expert 1 takes token 0 beside 3, and expert 2 takes token 3."""
    experts, _, _ = select(ExpertChoice(3, TWO), SCORE, valid_T=[True, False, True, True])
    assert experts == [[0, 1, 3], [3, 3, 3], [2, 3, 3], [0, 1, 2]]


@functools.lru_cache
def program(selector):
    return jax.jit(lambda score_BTE, valid_BT: selector.select({}, score_BTE, score_BTE, valid_BT, None)[:2])


B, T, E = 8, 6, 4


def inputs(seed, levels=10_000):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, levels, (B, T, E)) / levels).astype(np.float32), rng.random((B, T)) < 0.9


@given(seed=st.integers(0, 999), levels=st.sampled_from([3, 10_000]))
def test_equals_sorting(seed, levels):
    """Also with many equal scores."""
    score_BTE, valid_BT = inputs(seed, levels)
    expert_BTK, _ = program(ExpertChoice(E, 1.5, "global"))(score_BTE, valid_BT)
    score_NE = np.where(valid_BT[..., None], score_BTE, -np.inf).reshape(B * T, E)
    taken_NE = np.zeros((B * T, E), bool)
    for e in range(E):
        best = np.argsort(-score_NE[:, e], kind="stable")[: int(np.ceil(1.5 * B * T / E))]
        taken_NE[best, e] = score_NE[best, e] > -np.inf
    got_BTE = (np.asarray(expert_BTK)[..., None] == np.arange(E)).any(2)
    np.testing.assert_array_equal(got_BTE.reshape(B * T, E), taken_NE)


@pytest.mark.parametrize("over", ["experts", "tokens"])
def test_groups_on_eight_devices(over):
    score_BTE, valid_BT = inputs(0)
    got = {}
    with tiny.on_mesh(data=2, fsdp=2, expert=2) as mesh:
        placed = sharding.place_rows((score_BTE, valid_BT), mesh)
        for group in ("row", "shard", "global"):
            got[group] = program(ExpertChoice(E, 1.5, group, over))(*placed)
    alone = lambda group: program(ExpertChoice(E, 1.5, group, over))(score_BTE, valid_BT)
    tiny.close(got["global"], alone("global"), 1e-6)
    tiny.close(got["row"], alone("row"), 1e-6)
    tiny.close(got["shard"], got["row"], 1e-6)  # one row per device here
    assert (np.asarray(got["row"][0]) != np.asarray(got["global"][0])).any()


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"selector.factor=0 must be positive and finite"):
        ExpertChoice(2, factor=0)
    with pytest.raises(UsageError, match=r"selector.k=0 must be at least 1"):
        ExpertChoice(0)
    with pytest.raises(UsageError, match=r"selector.group='all' is not one of row, shard, global"):
        ExpertChoice(2, group="all")
    with pytest.raises(UsageError, match=r"selector.over='rows' is not one of experts, tokens"):
        ExpertChoice(2, over="rows")
