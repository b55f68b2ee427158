"""Two phases in turns: who is read first by hand, how time is split, and that waiting ends."""

import numpy as np
import pytest

from moejax.analysis.phase_split_plan import Device, Rule, Shape
from moejax.errors import UsageError
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.phase_split import PhaseSplit, shortest_first
from moejax.serving.simulated import Latency
from moejax.serving.state import Job
from tests.serving import toy

# Arithmetic alone counts: a position of a prompt and a written token take 2 ms each.
FLAT = Shape(dense=1.0, expert=0.0, num_experts=1, k=1, kv_bytes=0.0, kv_flops=0.0)
DEVICE = Device(flops=1000.0, bandwidth=1e12)


def split(**options) -> PhaseSplit:
    return PhaseSplit(FLAT, DEVICE, **options)


def test_scores_by_hand():
    """At 100 s: A 1500; B 400 - 150 = 250; C, of which 1100 tokens were read, -500; D 885."""
    left, waited = [3000, 400, 400, 900], [100, 10, 60, 1]
    assert shortest_first(left, waited, 15) == [2, 1, 3, 0]
    assert shortest_first(left, waited, 0) == [1, 2, 3, 0]
    assert shortest_first(left, waited, 1e9) == [0, 2, 1, 3]
    assert shortest_first([5, 5, 5], [1, 3, 2], 1e-3) == [1, 2, 0]


def first_steps(jobs, scheduler, count):
    served = toy.run(jobs, scheduler, toy.Setup(slots=8, pages=2000, page_size=4, layers=1))
    return [[(work.run.job.id, work.count) for work in plan.works] for plan in served.plans[:count]]


def test_the_first_that_does_not_fit_ends_the_step():
    """Lengths 300, 40, 41 and 90: 40 + 41 + 90 = 171 fit into 204; 300 counts as 204 and is read in parts."""
    jobs = [Job(id, (50 + id, *range(1, n)), 1) for id, n in enumerate((300, 40, 41, 90))]
    steps = first_steps(jobs, split(budget=204), 3)
    assert steps == [[(1, 40), (2, 41), (3, 90)], [(0, 204)], [(0, 96)]]
    assert first_steps(jobs, split(budget=600), 1) == [[(1, 40), (2, 41), (3, 90), (0, 300)]]


def test_turns_follow_the_share():
    """Half and half: a step of 100 positions is followed by 100 tokens of one writer, one step each."""
    jobs = [Job(0, (1,), 500), Job(1, tuple(range(400)), 1, arrival=1e-9)]
    scheduler = split(budget=100, rule=Rule(delta=99))  # never changed
    served = toy.run(jobs, scheduler, toy.Setup(slots=2, pages=400, page_size=4, layers=1))
    kinds = [plan.works[0].run.job.id for plan in served.plans]
    reads = [i for i, id in enumerate(kinds) if id == 1]
    np.testing.assert_array_equal(np.diff(reads), 101)


def test_the_share_is_the_planners():
    """Both phases bound by arithmetic ask for more than there is: prefill gets 77 / (77 + 91) of the time."""
    jobs = [Job(0, (1,), 500), Job(1, tuple(range(400)), 1, arrival=1e-9)]
    served = toy.run(
        jobs, split(budget=92, rule=Rule(delta=1)), toy.Setup(slots=2, pages=400, page_size=4, layers=1)
    )
    kinds = [plan.works[0].run.job.id for plan in served.plans]
    reads = [i for i, id in enumerate(kinds) if id == 1]
    np.testing.assert_allclose(np.diff(reads)[:3], 92 * 54 / 46 + 1, atol=1.5)  # steps are whole


def test_who_can_go_on_does():
    """Slots are full of half-read prompts: they go on, though a shorter one waits."""
    jobs = [Job(0, tuple(range(40)), 2), Job(1, tuple(range(100, 130)), 2, 0.01), Job(2, (7,), 2, 0.02)]
    served = toy.run(jobs, split(budget=8), toy.Setup(slots=1, pages=20, page_size=4, layers=1))
    assert served.texts == {job.id: toy.text_of(job) for job in jobs}
    assert served.finished[0] == 0


def waits(scheduler, jobs) -> np.ndarray:
    """Seconds to the first token of each job."""
    setup = toy.Setup(slots=64, pages=4000, page_size=16, layers=1)
    served = toy.run(jobs, scheduler, setup, latency=Latency(row=1 / 8000))
    arrival = {job.id: job.arrival for job in jobs}
    found = {drawn.job: step.now - arrival[drawn.job] for step in served.steps for drawn in step.written}
    return np.array([found[job.id] for job in jobs])


def mixed(count: int, rate: float) -> list[Job]:
    """60% short and 40% long prompts, which differ from their first token on."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(count) < 0.6, rng.integers(10, 60, count), rng.integers(200, 900, count))
    arrival = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    return [Job(id, (id, *range(1, n)), 1, arrival[id]) for id, n in enumerate(lengths.tolist())]


def test_short_prompts_wait_less_and_long_ones_not_for_ever():
    jobs = mixed(150, rate=32.0)
    last, first = waits(split(budget=512, gamma=1e9), jobs), waits(split(budget=512, gamma=15), jobs)
    old = waits(split(budget=512, gamma=1000), jobs)
    assert first.mean() < 0.85 * last.mean() and np.median(first) < 0.6 * np.median(last)
    assert last.max() < first.max()
    assert old.max() < first.max() and old.mean() < last.mean()


def test_without_age_equal_lengths_are_first_come():
    jobs = [Job(id, (id, *range(1, 60)), 1, 0.001 * id) for id in range(30)]
    old, young = (waits(split(budget=128, gamma=gamma), jobs) for gamma in (1e6, 5))
    np.testing.assert_allclose(young, old)


def test_text_is_that_of_first_come():
    jobs = [Job(id, tuple(range(5 + 7 * id % 40)), 6, 0.02 * id) for id in range(12)]
    one, other = (toy.run(jobs, scheduler) for scheduler in (split(budget=16), Fcfs()))
    assert one.texts == other.texts


def test_settings_that_cannot_work():
    with pytest.raises(UsageError, match="budget=0 must be at least 1"):
        split(budget=0)
    with pytest.raises(UsageError, match="gamma=-1 must be at least 0"):
        split(gamma=-1)
