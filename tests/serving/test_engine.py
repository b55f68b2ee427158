"""The loop that serves, with a model in miniature."""

import dataclasses

import pytest

from moejax.errors import UsageError
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import Job, ServeState
from tests.serving import toy

JOBS = [Job(0, (1, 2, 3), 4), Job(1, (4, 5), 2, arrival=0.5), Job(2, (6,), 3, arrival=90.0)]
SECOND = Latency(fixed=1.0)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_text_and_ends(ahead):
    served = toy.run(JOBS, Fcfs(), toy.Setup(ahead=ahead))
    assert served.texts == {job.id: toy.text_of(job) for job in JOBS}
    assert [len(text) for text in served.texts.values()] == [4, 2, 3]
    assert {job.id: why for step in served.steps for job, why in step.finished} == dict.fromkeys(
        range(3), "length"
    )


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_end_token_ends_a_text_and_is_no_part_of_it(ahead):
    long = [dataclasses.replace(job, max_new=12) for job in JOBS]
    end = toy.text_of(long[0])[5]
    served = toy.run(long, Fcfs(), toy.Setup(ends=frozenset([end]), ahead=ahead))
    assert served.texts == {job.id: toy.text_of(job, ends=frozenset([end])) for job in long}
    assert len(served.texts[0]) <= 5
    reasons = {job.id: why for step in served.steps for job, why in step.finished}
    assert reasons[0] == "stop"
    assert served.state.pages.used == 0


def test_the_clock():
    """A prompt is read from 0 to 1; the second arrives meanwhile, is read first, and then both write."""
    state = ServeState(4, Pages(8, 4), 1)
    steps = list(serve(JOBS[:2], Fcfs(), Simulated(SECOND, 1), state, ahead=0))
    told = [(step.now, [drawn.job for drawn in step.written]) for step in steps]
    assert told == [(1, [0]), (2, [1]), (3, [0, 1]), (4, [0]), (5, [0])]


def test_one_step_ahead_sees_arrivals_a_step_later():
    state = ServeState(4, Pages(8, 4), 1)
    steps = list(serve(JOBS[:2], Fcfs(), Simulated(SECOND, 1), state, ahead=1))
    assert [[drawn.job for drawn in step.written] for step in steps][:3] == [[0], [0], [1]]


def test_an_idle_engine_waits_for_the_next_arrival():
    served = toy.run(JOBS, Fcfs(), latency=SECOND)
    assert served.steps[-1].now == 93


def test_a_job_is_not_looked_at_before_it_can_come():
    taken = []

    def jobs():
        for job in JOBS:
            taken.append(job.id)
            yield job

    state = ServeState(4, Pages(8, 4), 1)
    steps = serve(jobs(), Fcfs(), Simulated(SECOND, 1), state, ahead=0)
    next(steps)
    assert taken == [0, 1]
    assert len(list(steps)) > 0 and taken == [0, 1, 2]


def test_no_more_requests_wait_than_are_looked_at():
    state = ServeState(1, Pages(8, 4), 1, most_waiting=2)
    jobs = (Job(id, (1, 2), 5) for id in range(9))
    waits = [len(state.waiting) for _ in serve(jobs, Fcfs(), Simulated(SECOND, 1), state)]
    assert max(waits) == 2 and len(waits) == 9 * 5


def test_a_job_larger_than_the_cache():
    message = "request 0 needs 6 positions, the whole cache has 4; shorten it, or give the cache more pages"
    with pytest.raises(UsageError, match=message):
        toy.run(JOBS, Fcfs(), toy.Setup(pages=2, page_size=2))


@dataclasses.dataclass(frozen=True)
class Lazy(Scheduler):
    def plan(self, state, now):
        return []


def test_a_scheduler_that_does_nothing():
    with pytest.raises(UsageError, match=r"Lazy\(\) plans nothing while 1 requests wait"):
        toy.run(JOBS[:1], Lazy())
