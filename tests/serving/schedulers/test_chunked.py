"""Chunked prefill: the paper's trace, budgets, and what chunks cost."""

import math

import pytest

from moejax.errors import UsageError
from moejax.serving.schedulers.chunked import Chunked, profile_budget
from moejax.serving.simulated import Latency
from moejax.serving.state import Job
from tests.serving import toy

A, B, C, D = range(4)
UNIT = Latency(fixed=1.0)


def trace(budget: int) -> toy.Served:
    lengths = {A: (2, 8, 0), B: (1, 8, 0), C: (13, 3, 1.5), D: (3, 3, 1.5)}
    jobs = [Job(id, tuple(range(20 * id, 20 * id + p)), new, at) for id, (p, new, at) in lengths.items()]
    return toy.run(jobs, Chunked(budget), toy.Setup(ahead=0), latency=UNIT)


def test_the_worked_trace():
    served = trace(budget=8)
    both, all_four = {A: 1, B: 1}, {A: 1, B: 1, C: 1, D: 1}
    assert toy.table(served) == [
        {A: 2, B: 1},
        both,
        both | {C: 6},
        both | {C: 6},
        both | {C: 1, D: 3},
        all_four,
        all_four,
        both,
    ]
    told = [[drawn.job for drawn in step.written] for step in served.steps]
    assert not any(C in jobs for jobs in told[:4]) and told[4] == [A, B, C, D]
    assert all(tokens[:2] == [A, B] for tokens in told)


def test_an_endless_budget_mixes_whole_prompts():
    assert toy.table(trace(budget=10**6))[2] == {A: 1, B: 1, C: 13, D: 3}


def test_writers_alone_may_exceed_the_budget():
    """Whoever has begun goes on at tau = 1, and of three that write none waits for tau = 2."""
    rows = toy.table(trace(budget=1))
    assert rows[:4] == [{A: 1}, {A: 1}, {A: 1}, {A: 1}]
    jobs = [Job(id, (id,), 4) for id in range(3)]
    served = toy.run(jobs, Chunked(2), toy.Setup(ahead=0), latency=UNIT)
    assert toy.table(served)[:3] == [{0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}]


@pytest.mark.parametrize(
    ("prompt", "chunk", "again"), [(4096, 512, 14336), (8192, 512, 61440), (8192, 2048, 12288)]
)
def test_keys_that_chunks_read_again(prompt, chunk, again):
    setup = toy.Setup(pages=600, page_size=16, sharing=False)
    served = toy.simulate([Job(0, (0,) * prompt, 1)], Chunked(chunk), setup, UNIT)
    works = [work for step in served for work in step.result.plan.works]
    assert sum(work.start for work in works) == again
    assert sum(work.count for work in works) == prompt and len(works) == math.ceil(prompt / chunk)


def test_the_watermark_keeps_pages_for_those_who_write():
    """Of 8 pages 6 stay available after every admission but the first, so the third request waits."""
    jobs = [Job(id, (id, 1, 2, 3), 2) for id in range(3)]
    setup = toy.Setup(pages=8, ahead=0)
    assert toy.table(toy.run(jobs, Chunked(100, watermark=0.0), setup))[0] == {0: 4, 1: 4, 2: 4}
    assert toy.table(toy.run(jobs, Chunked(100, watermark=0.75), setup))[0] == {0: 4, 1: 4}


def test_a_budget_from_step_times():
    seconds = lambda tokens: 0.047 + 0.00018 * tokens
    assert profile_budget(seconds, 0.2, tile=1) == 850
    assert profile_budget(seconds, 0.2, tile=128) == 768
    assert profile_budget(seconds, 0.06, tile=128) == 72, "less than a tile is better than nothing"
    with pytest.raises(UsageError, match=r"a step of 1 token takes 0.0472 s, wanted are 0.01 s"):
        profile_budget(seconds, 0.01)
    with pytest.raises(UsageError, match="there is nothing to limit"):
        profile_budget(lambda tokens: 0.1, 0.2)


@pytest.mark.parametrize(
    ("settings", "name"), [({"budget": 0}, "budget=0"), ({"watermark": 1.0}, "watermark=1")]
)
def test_impossible_settings(settings, name):
    with pytest.raises(UsageError, match=f"scheduler.{name}"):
        Chunked(**settings)
