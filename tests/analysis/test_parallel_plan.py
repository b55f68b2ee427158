"""The planner of parallelism: the element counts and best r of Tutel's numbers, then what must hold."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis import parallel_plan
from moejax.analysis.overlap_plan import Linear
from moejax.analysis.parallel_plan import Choice, Costs, MoeShape, Traffic
from moejax.errors import UsageError


def small(devices):
    """Two experts of 8 x 16 and 16 x 8; 16 tokens with one expert each fill 8 slots per expert."""
    return MoeShape(8, 16, 2, expert_devices=2, slices=devices // 2, tokens=16, k=1)


@pytest.mark.parametrize(
    "devices, r, exchange, weights",
    [
        (4, 0, 0, 384),
        (4, 1, 192, 128),
        (4, 2, 384, 0),
        (8, 0, 0, 448),
        (8, 1, 224, 192),
        (8, 2, 448, 64),
        (8, 4, 896, 0),
    ],
)
def test_elements_by_hand(devices, r, exchange, weights):
    """For r = 1 on 8 devices: 2 experts x 8 slots x 8 wide, there and back, 7/8 of it to others."""
    got = parallel_plan.traffic(small(devices), 2 * 8, r)
    assert got == Traffic(exchange, weights)
    assert got.training == 2 * (exchange + weights)


def on_64(hidden, tokens):
    return MoeShape(2048, hidden, 16, expert_devices=16, slices=4, tokens=tokens, k=2)


@pytest.mark.parametrize(
    "hidden, tokens, wanted",
    [(32768, 1024, {1: 4, 2: 4, 4: 2, 8: 2, 16: 1}), (2048, 4096, {1: 1, 2: 1, 4: 0, 8: 0})],
)
def test_the_best_r_falls_with_the_load(hidden, tokens, wanted):
    shape = on_64(hidden, tokens)
    assert {factor: parallel_plan.least_traffic(shape, factor) for factor in wanted} == wanted


def test_trials_of_the_paper():
    assert parallel_plan.num_trials(4) == pytest.approx(43.35, abs=5e-3)
    assert parallel_plan.num_trials(8) == pytest.approx(57.03, abs=5e-3)


@given(st.integers(0, 10))
def test_all_choices_are_fewer_than_the_paper_may_try(log_slices):
    choices = len(parallel_plan.degrees_of_sharing(2**log_slices)) * 4 * 2
    assert choices <= parallel_plan.num_trials(2**log_slices) + 1e-9


def test_messages_of_the_paper():
    """Eight devices in nodes of four; then 128 MiB from each of 2048 devices in nodes of eight."""
    assert parallel_plan.messages(8, 4, 80, 1) == parallel_plan.Messages(4, 10)
    assert parallel_plan.messages(8, 4, 80, 4) == parallel_plan.Messages(1, 40)
    size = 128 * 2**20
    assert parallel_plan.messages(2048, 8, size, 1).size == 64 * 2**10
    assert parallel_plan.messages(2048, 8, size, 8).size == 512 * 2**10


def costs(between=(0.0, 1e-6), inside=(0.0, 1e-8), gather=(0.0, 1e-6), compute=(0.0, 1e-12), node=8):
    return Costs(Linear(*between), Linear(*inside), Linear(*gather), Linear(*compute), node)


def test_exchange_by_hand():
    """Four devices in two nodes send 8 elements each: two messages of 2 and one of 2, or 4 and 4."""
    price = costs(between=(10, 1), inside=(1, 0.5), node=2)
    assert parallel_plan.exchange_time(price, 4, 8, 1) == 2 * (10 + 2) + (1 + 0.5 * 2)
    assert parallel_plan.exchange_time(price, 4, 8, 2) == (10 + 4) + (1 + 0.5 * 4)


def test_step_by_hand():
    """r = 1 on one node of four: weights 2 x 128; a2a of 128 elements: 3 messages of 32 inside."""
    price = costs(inside=(0, 1), gather=(5, 1), compute=(0, 1e-3), node=4)
    arithmetic = 16 * 2 * 8 * 16 * 1e-3
    gathered, a2a = 2 * (5 + 128), 3 * 32
    one = parallel_plan.step_time(small(4), price, Choice(1, 1, 1, 1))
    assert one == pytest.approx(gathered + (2 * a2a + arithmetic) + (2 * a2a + 2 * arithmetic))
    local = parallel_plan.step_time(small(4), price, Choice(1, 0, 1, 1))
    assert local == pytest.approx(2 * (5 + 384) + 3 * arithmetic)


def test_each_choice_has_its_load():
    shape = on_64(32768, 1024)
    free = costs(compute=(0.0, 0.0))
    by_time = [choice.r for choice in parallel_plan.plan(shape, free, (1, 4, 16, 64))]
    assert by_time == sorted(by_time, reverse=True) and by_time[0] > by_time[-1]
    (slow_start,) = parallel_plan.plan(shape, costs(between=(1.0, 0.0), gather=(1e3, 0.0)), (1,))
    assert slow_start == Choice(1, 4, 1, 8)
    busy = dataclasses.replace(free, compute=Linear(0.0, 1e-11))
    assert parallel_plan.plan(shape, busy, (1,))[0].chunks > 1


@pytest.mark.parametrize(
    "change, says",
    [
        ({"slices": 3}, "hidden=16 is not divisible by slices=3"),
        ({"expert_devices": 3}, "experts=2 is not divisible by expert_devices=3"),
        ({"k": 3}, "k=3 is more than experts=2"),
        ({"tokens": 0}, "tokens=0 must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(small(4), **change)


def test_an_impossible_r_is_refused():
    with pytest.raises(UsageError, match="r=3 does not divide slices=4; choose one of 0, 1, 2, 4"):
        parallel_plan.traffic(small(8), 16, 3)
