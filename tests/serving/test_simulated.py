"""The simulated executor: what steps cost, which experts rows meet, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.serving import simulated
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import Result, make_plan
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.simulated import Cost, Latency, Simulated, Table
from moejax.serving.state import Job, ServeState, Work


@pytest.fixture
def state():
    state = ServeState(4, Pages(64, 2), num_layers=4)
    state.waiting.extend((Job(0, tuple(range(8)), 4), Job(1, (9,), 4)))
    return state


def test_the_cost_of_a_step_by_hand(state):
    """4 positions through half the layers, 1 row through all of them, and 2 that are idle."""
    a, b = (state.admit(state.waiting[0]) for _ in range(2))
    state.rows(a, 4)
    plan = make_plan(0, [state.rows(a, 4, stop=2), state.rows(b, 1)], state, 7)
    # rows 4/2 + 1 + 2; keys 8/2 + 1; pairs (5 + 6 + 7 + 8)/2 + 1
    assert simulated.cost_of(plan, 10, 4) == Cost(1, 5, 10, 5, 14)
    latency = Latency(fixed=0.1, row=0.01, expert=0.001, key=2.0, pair=1.0)
    assert latency.seconds(Cost(1, 5, 10, 5, 14)) == pytest.approx(0.1 + 0.05 + 0.01 + 10 + 14)


def test_a_latency_is_found_again():
    truth, state = Latency(fixed=0.02, row=3e-4, key=2e-6), ServeState(8, Pages(512, 4), 2)
    jobs = [Job(id, tuple(range(7 * id, 7 * id + 5 * id + 1)), 5 + id) for id in range(20)]
    results = [step.result for step in serve(jobs, Chunked(32), Simulated(truth, 2), state)]
    found = simulated.fit(results, 2)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(truth), rel=1e-6, abs=1e-12)


def test_a_fitted_time_is_never_negative(state):
    """Longer steps that take less time: nothing but a fixed time is left."""
    run = state.admit(state.waiting[0])
    plans = [make_plan(n, [Work(run, 0, n, 0, 4)], state, n) for n in (2, 4, 8)]
    results = [Result(plan, (), seconds) for plan, seconds in zip(plans, (1.0, 0.9, 0.8), strict=True)]
    found = simulated.fit(results, 4)
    assert found.row == found.key == found.pair == 0 and 0.8 < found.fixed < 1
    with pytest.raises(UsageError, match="there are no steps to fit"):
        simulated.fit([], 4)


def test_a_latency_without_time():
    for times in ({}, {"fixed": -1.0, "row": 1.0}):
        with pytest.raises(UsageError, match="must have no time below 0 and one above"):
            Latency(**times)


def test_distinct_experts_by_hand(state):
    """In each of 4 layers request 0 meets experts 0, 1, 0, 1, ..., and request 1 meets 70."""
    expert_NLK = np.zeros((16, 4, 1), int)
    expert_NLK[1:8:2], expert_NLK[8:] = 1, 70
    table = Table(expert_NLK, num_experts=71, stride=8)
    a, b = (state.admit(state.waiting[0]) for _ in range(2))
    assert table.loads([Work(a, 0, 1, 0, 4)]) == 4
    assert table.loads([Work(a, 0, 3, 0, 4)]) == 8
    assert table.loads([Work(a, 0, 8, 1, 2), Work(b, 0, 1, 0, 4)]) == 2 + 4
    empty = Table(np.full((16, 4, 1), 71), num_experts=71)
    assert empty.loads([Work(a, 0, 8, 0, 4)]) == 0, "expert E is nowhere"


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_drawn_routing_has_the_coverage_of_its_law(state, power):
    E, k, n = 16, 2, 8
    table = Table.zipf(num_layers=4, num_experts=E, k=k, power=power, seed=3)
    run = state.admit(state.waiting[0])
    loads = [table.loads([Work(run, start, n, 0, 4)]) / 4 for start in range(0, 4096, n)]
    rank = np.arange(1, E + 1.0) ** -power
    rank /= rank.sum()
    # drawn without replacement: the first is e, or the second is and the first was another one
    chosen = rank + np.array(
        [sum(rank[f] * rank[e] / (1 - rank[f]) for f in range(E) if f != e) for e in range(E)]
    )
    assert np.mean(loads) == pytest.approx((1 - (1 - chosen) ** n).sum(), rel=0.02)
    again = Table.zipf(num_layers=4, num_experts=E, k=k, power=power, seed=3)
    assert again.loads([Work(run, 5, n, 0, 4)]) == table.loads([Work(run, 5, n, 0, 4)])


def test_more_experts_per_token_than_there_are():
    with pytest.raises(UsageError, match="k=3 must be from 1 to num_experts=2"):
        Table.zipf(1, 2, 3)


def test_tokens_depend_on_request_and_position_alone():
    executor = Simulated(Latency(1.0), 1, vocab=1000)
    tokens = [executor.token(job, position) for job in range(20) for position in range(20)]
    assert len(set(tokens)) > 300 and min(tokens) >= 0 and max(tokens) < 1000
    assert Simulated(Latency(2.0), 7, vocab=1000).token(3, 4) == tokens[64]


def test_sizes_of_steps():
    executor = Simulated(Latency(1.0), 1, sizes=(16, 4))
    assert [executor.rows(count) for count in (1, 4, 5, 16)] == [4, 4, 16, 16]
    with pytest.raises(UsageError, match="a step has at most 16 rows, 17 were asked for"):
        executor.rows(17)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ((1, 4, 0, 4), "brings 4 positions from 1 at layer 0; it stands at position 0, layer 0"),
        ((0, 4, 2, 4), "brings 4 positions from 0 at layer 2; it stands at position 0, layer 0"),
    ],
)
def test_a_skipped_position_or_layer_is_refused(state, work, message):
    executor = Simulated(Latency(1.0), 4)
    run = state.admit(state.waiting[0])
    with pytest.raises(UsageError, match=message):
        executor.submit(make_plan(0, [Work(run, *work)], state, 8))


def test_parked_rows_go_on_together(state):
    executor = Simulated(Latency(1.0), 4)
    run = state.admit(state.waiting[0])
    executor.submit(make_plan(0, [Work(run, 0, 4, 0, 2)], state, 8))
    with pytest.raises(UsageError, match="it stands at position 0, layer 2, with 4 parked"):
        executor.submit(make_plan(1, [Work(run, 0, 3, 2, 4)], state, 8))
