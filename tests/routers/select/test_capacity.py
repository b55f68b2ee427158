"""Capacity by hand, against a queue in numpy, and on eight devices."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax import sharding
from moejax import specs as sp
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.capacity import Capacity, openmoe_slots, places, tutel_slots
from moejax.routers.select.top_k import TopK
from moejax.seams import BlockOut
from moejax.training.router_meter import RouterMeter
from tests.contracts import oracles, tiny
from tests.routers.select.by_hand import select

# Tutel's brief: choices 01, 01, 02, 10, 02, 20.
TUTEL = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.5, 0.1, 0.4],
    [0.1, 0.8, 0.1],
    [0.45, 0.15, 0.4],
    [0.2, 0.1, 0.7],
]
# OpenMoE's: choices 01, 01, 02, 01, 10, 21.
OPENMOE = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.5, 0.1, 0.4],
    [0.8, 0.15, 0.05],
    [0.2, 0.7, 0.1],
    [0.1, 0.3, 0.6],
]


def test_places_in_the_queues_by_hand():
    """Expert 0 is the first choice of tokens 0, 1, 2, 4 and the second of 3 and 5."""
    expert_NK = np.array([[0, 1], [0, 1], [0, 2], [1, 0], [0, 2], [2, 0]])
    assert places(expert_NK, 3).tolist() == [[0, 1], [1, 2], [2, 1], [0, 4], [3, 2], [0, 5]]


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_tutel_drops_two_second_choices(factor):
    """ceil(6/3) = 2 and int(1.25 * 2) = 2: 4 slots each; expert 0 has 6 requests."""
    experts, gates, extra = select(Capacity(TopK(2), factor), TUTEL)
    assert experts == [[0, 1], [0, 1], [0, 2], [1, 0], [0, 2], [2, 0]]  # dropped choices keep their name
    dropped = [(t, j) for t, row in enumerate(extra["kept_BTK"]) for j, kept in enumerate(row) if not kept]
    assert dropped == [(3, 1), (5, 1)]
    np.testing.assert_allclose(gates[0], [0.7778, 0.2222], atol=5e-5)
    np.testing.assert_allclose(gates[3], [0.8889, 0], atol=5e-5)  # not renormalised after the drop


def test_openmoe_drops_half_at_two_slots_and_a_sixth_at_four():
    """OpenMoE's rule never gives fewer than 4 slots; two are 2 int(0.5 * 2) of Tutel's."""
    kept = np.array(select(Capacity(TopK(2), 0.5), OPENMOE)[2]["kept_BTK"])
    assert kept.astype(int).tolist() == [[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [1, 0]]
    for selector in (Capacity(TopK(2), 2.0, rule="openmoe"), Capacity(TopK(2), 1.0)):
        kept = select(selector, OPENMOE)[2]["kept_BTK"]
        assert kept == [[True, True]] * 4 + [[True, False]] * 2
    assert np.all(select(Capacity(TopK(2), 2.5, rule="openmoe"), OPENMOE)[2]["kept_BTK"])


def test_slots_of_the_two_rules():
    assert [tutel_slots(6, 3, 2, factor) for factor in (1.0, 1.25, 1.5)] == [4, 4, 6]
    assert [openmoe_slots(4096, 32, 2, factor) for factor in (1.25, 2.0)] == [160, 256]
    assert openmoe_slots(6, 3, 2, 1.25) == 4


def test_the_most_certain_token_comes_first():
    """Two slots for three tokens of expert 0, scores 0.6, 0.55, 0.9: by position the best is dropped."""
    score = [[first, 1 - first] for first in (0.6, 0.55, 0.9, 0.3)]
    dropped = lambda order: [
        not kept for (kept,) in select(Capacity(TopK(1), order=order), score)[2]["kept_BTK"]
    ]
    assert dropped("position") == [False, False, True, False]
    assert dropped("score") == [False, True, False, False]


def test_absent_tokens_take_no_slot():
    valid = [False, False, True, True, True, True]
    experts, gates, extra = select(Capacity(TopK(2)), TUTEL, valid_T=valid)
    assert experts[:2] == [[3, 3], [3, 3]]
    assert extra["kept_BTK"] == [[False, False]] * 2 + [[True, True]] * 4
    assert not gates[:2].any()


def queue(expert_NK, urgency_N, slots, by_score):
    """Kept choices, one request after the other."""
    E = expert_NK.max() + 1
    left_E = np.full(E, slots)
    kept_NK = np.zeros(expert_NK.shape, bool)
    tokens = np.argsort(-urgency_N, kind="stable") if by_score else np.arange(len(expert_NK))
    for k in range(expert_NK.shape[1]):
        for n in tokens:
            e = expert_NK[n, k]
            kept_NK[n, k] = left_E[e] > 0
            left_E[e] -= 1
    return kept_NK


@functools.lru_cache
def program(selector):
    return jax.jit(lambda score_BTE, valid_BT: selector.select({}, score_BTE, score_BTE, valid_BT, None))


B, T, D, E = 8, 6, 8, 4
MESH = {"data": 2, "fsdp": 2, "expert": 2}


def inputs(seed, hot):
    rng = np.random.default_rng(seed)
    score_BTE = rng.random((B, T, E), np.float32)
    score_BTE[..., 1] += hot
    return score_BTE, rng.random((B, T)) < 0.9


@given(seed=st.integers(0, 999), hot=st.sampled_from([0.0, 0.5, 2.0]))
@pytest.mark.parametrize("order", ["position", "score"])
def test_equals_a_queue(order, seed, hot):
    score_BTE, valid_BT = inputs(seed, hot)
    expert_BTK, gate_BTK, extra = program(Capacity(TopK(2), 0.75, order=order))(score_BTE, valid_BT)
    expert_NK = np.asarray(expert_BTK).reshape(B * T, 2)
    want_NK = queue(
        expert_NK, score_BTE.max(-1).reshape(-1), tutel_slots(B * T, E, 2, 0.75), order == "score"
    )
    want_NK &= expert_NK < E
    np.testing.assert_array_equal(extra["kept_BTK"], want_NK.reshape(B, T, 2))
    assert not np.asarray(gate_BTK)[~want_NK.reshape(B, T, 2)].any()


@pytest.mark.parametrize("order", ["position", "score"])
def test_groups_on_eight_devices(order):
    """Global is what one device gives for the whole batch, shard for a device's rows, row for each row."""
    score_BTE, valid_BT = inputs(0, hot=0.5)
    kept = {}
    with tiny.on_mesh(**MESH) as mesh:
        placed = sharding.place_rows((score_BTE, valid_BT), mesh)
        for group in ("row", "shard", "global"):
            kept[group] = np.asarray(program(Capacity(TopK(2), 0.75, group, order))(*placed)[2]["kept_BTK"])
    alone = program(Capacity(TopK(2), 0.75, "shard", order))
    whole_BTK = np.asarray(alone(score_BTE, valid_BT)[2]["kept_BTK"])
    rows = [alone(score_BTE[b : b + 1], valid_BT[b : b + 1])[2]["kept_BTK"] for b in range(B)]
    np.testing.assert_array_equal(kept["global"], whole_BTK)
    np.testing.assert_array_equal(kept["row"], np.concatenate(rows))
    np.testing.assert_array_equal(kept["shard"], kept["row"])  # one row per device here
    assert (kept["row"] != whole_BTK).any()


@pytest.mark.parametrize("order", ["position", "score"])
def test_a_shard_is_the_rows_of_one_device(order):
    score_BTE, valid_BT = inputs(1, hot=0.5)
    selector = Capacity(TopK(2), 0.75, "shard", order)
    with tiny.on_mesh(data=2, tensor=4) as mesh:
        placed = sharding.place_rows((score_BTE, valid_BT), mesh)
        kept_BTK = np.asarray(program(selector)(*placed)[2]["kept_BTK"])
    halves = [
        program(selector)(score_BTE[half], valid_BT[half])[2]["kept_BTK"]
        for half in np.split(np.arange(B), 2)
    ]
    np.testing.assert_array_equal(kept_BTK, np.concatenate(halves))


@functools.lru_cache
def layer(selector):
    """(output, routing) of a whole layer, and the meter's count of drops."""
    moe = Moe(E, 6, Linear(), selector, Local())

    def run(p, i):
        y_BTD, routing, _ = moe.apply(p, i)
        seen = RouterMeter().probe(BlockOut(y_BTD, i.mixing, routing), i.batch)
        return y_BTD, routing, seen["dropped"], seen["slots_E"]

    return moe, jax.jit(run)


def test_a_layer_computes_what_is_kept_and_counts_what_is_dropped():
    """Balance losses and load see all choices; the output is that of the kept ones alone."""
    with jax.enable_x64(True):
        moe, run = layer(Capacity(TopK(2), 0.5))
        p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), moe.specs(tiny.float64(tiny.model(width=D)))))
        batch, x_BTD = tiny.batch(0, B, T), np.random.default_rng(1).standard_normal((B, T, D))
        y_BTD, routing, dropped, slots_E = jax.tree.map(np.asarray, run(p, tiny.route_in(x_BTD, batch)))
    sent_BTK = np.where(routing.kept_BTK, routing.expert_BTK, E)
    want_BTD = oracles.moe(p["experts"], x_BTD, sent_BTK, routing.gate_BTK)
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-12)
    wanted = 2 * batch.valid_BT.sum()
    assert slots_E.sum() == wanted == (routing.expert_BTK < E).sum()
    assert dropped == wanted - routing.kept_BTK.sum() > 0


def test_enough_capacity_is_no_capacity():
    moe, run = layer(TopK(2))
    p = sp.init(jax.random.key(0), moe.specs(tiny.model(width=D)))
    i = tiny.route_in(np.random.default_rng(1).standard_normal((B, T, D), np.float32), tiny.batch(0, B, T))
    want = run(p, i)[0]
    np.testing.assert_array_equal(layer(Capacity(TopK(2), factor=E))[1](p, i)[0], want)


def test_what_cannot_work_is_refused():
    with pytest.raises(
        UsageError, match=r"selector.factor=0.3 leaves 3 experts no slot in a group of 6 tokens"
    ):
        select(Capacity(TopK(2), factor=0.3), TUTEL)
    with pytest.raises(
        UsageError,
        match=r"selector.factor=0 must be positive and finite; to drop nothing, use the inner TopK",
    ):
        Capacity(TopK(2), factor=0)
    with pytest.raises(UsageError, match=r"selector.selector=Capacity has limits of its own"):
        Capacity(Capacity(TopK(2)))
    with pytest.raises(UsageError, match=r"selector.group='all' is not one of row, shard, global"):
        Capacity(TopK(2), group="all")
    with pytest.raises(UsageError, match=r"selector.order='random' is not one of position, score"):
        Capacity(TopK(2), order="random")
    with pytest.raises(UsageError, match=r"selector.rule='gshard' is not one of tutel, openmoe"):
        Capacity(TopK(2), rule="gshard")
