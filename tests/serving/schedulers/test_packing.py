"""Prepacking: bins by hand, their bounds, and steps that are bins."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import UsageError
from moejax.serving.pages import Pages
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.packing import Packing, pack
from moejax.serving.simulated import Latency
from moejax.serving.state import Job, ServeState
from tests.serving import toy

LENGTHS = [7, 3, 5, 2, 1, 4]


def jobs_of(lengths, max_new=1):
    return [Job(id, tuple(range(50 * id, 50 * id + length)), max_new) for id, length in enumerate(lengths)]


def test_the_worked_example():
    assert pack(LENGTHS, 7) == [[0], [2, 3], [5, 1], [4]]


def test_best_fit_needs_one_bin_less_than_first_fit():
    lengths = [7, 14, 14, 5, 8, 14, 3, 11, 2, 2, 7]
    assert len(pack(lengths, 15)) == 6
    room = []
    for length in sorted(lengths, reverse=True):
        b = next((b for b, left in enumerate(room) if left >= length), None)
        if b is None:
            room.append(15 - length)
        else:
            room[b] -= length
    assert len(room) == 7


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 40))
def test_bins(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in items) <= capacity for items in bins)
    assert math.ceil(sum(lengths) / capacity) <= len(bins) <= len(lengths)


def test_equal_lengths_are_not_packed():
    assert pack([5, 5, 5], 5) == [[0], [1], [2]] and pack([], 5) == []


def test_an_item_longer_than_a_bin():
    with pytest.raises(UsageError, match="a prompt of 6 tokens does not fit into 5 rows; raise them"):
        pack([6], 5)


def test_a_step_is_a_bin():
    """The bins of the worked example, in the order of their first prompts: 4 steps of 7 rows."""
    served = toy.run(jobs_of(LENGTHS), Packing(7), toy.Setup(slots=6, ahead=0), sizes=(7,))
    assert toy.table(served) == [{0: 7}, {1: 3, 5: 4}, {2: 5, 3: 2}, {4: 1}]
    assert [len(plan.slot_J) for plan in served.plans] == [7] * 4


def test_a_long_prompt_is_read_in_steps_of_its_own():
    served = toy.run(jobs_of([3, 10, 4]), Packing(7), toy.Setup(ahead=0))
    assert toy.table(served) == [{0: 3, 2: 4}, {1: 7}, {1: 3}]


def test_packed_and_not():
    """k prompts one a step take k steps, packed r: at a fixed time a step the speed-up is k / r."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(3.0, 0.9, 16)), 100).astype(int) + 1
    capacity = int(lengths.max())
    setup = toy.Setup(slots=16, pages=2000, ahead=0)
    packed = toy.simulate(jobs_of(lengths), Packing(capacity), setup, Latency(1.0), sizes=(capacity,))
    single = toy.simulate(
        jobs_of(lengths), Fcfs(capacity), toy.Setup(slots=1, pages=2000, ahead=0), Latency(1.0)
    )
    r = len(pack(lengths.tolist(), capacity))
    assert single[-1].now / packed[-1].now == 16 / r > 2


def test_no_room():
    with pytest.raises(UsageError, match=r"scheduler\.capacity=0 must be at least 1"):
        Packing(0)


def test_who_comes_back_is_as_long_as_its_text():
    """4 and 3 positions fit into a bin of 8 until the second has written 2 tokens."""
    state = ServeState(2, Pages(20, 1, sharing=False), num_layers=1)
    state.waiting.extend(jobs_of([4, 3], max_new=5))
    packing = Packing(8)
    packing.start(state)
    assert [work.count for work in packing.plan(state, 0.0)] == [4, 3]
    first, second = state.running.values()
    second.text += [1, 2]
    state.preempt(second)
    state.preempt(first)
    assert [[work.count for work in packing.plan(state, 0.0)] for _ in range(2)] == [[4], [5]]
