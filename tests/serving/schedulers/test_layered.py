"""Layered prefill: groups, the hand case of expert loads, cohorts."""

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.layered import Layered, num_groups, split_layers
from moejax.serving.simulated import Latency, Table
from moejax.serving.state import Job
from tests.serving import toy

UNIT = Latency(fixed=1.0)


def test_the_number_of_groups():
    tokens = (0, 1, 512, 513, 1024, 1025, 8192, 8193)
    assert [num_groups(P, 512, 48) for P in tokens] == [1, 1, 1, 2, 2, 3, 16, 17]
    assert num_groups(8193, 512, 4) == 4, "a layer is the smallest group"


def test_nearly_even_groups():
    assert split_layers(10, 4) == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert [stop - start for start, stop in split_layers(48, 16)] == [3] * 16
    assert split_layers(5, 1) == [(0, 5)]


def hand_case(scheduler) -> list:
    """The steps that read a prompt of 8, while one request writes; all positions of it meet expert 4."""
    expert_NLK = np.full((32, 4, 1), 4)
    expert_NLK[16:24] = np.arange(8)[:, None, None] % 4
    jobs = [Job(0, (9,), 8), Job(1, tuple(range(8)), 1, arrival=0.5)]
    setup = toy.Setup(ahead=0)
    steps = toy.simulate(jobs, scheduler, setup, UNIT, routing=Table(expert_NLK, num_experts=8, stride=16))
    return [step for step in steps if any(work.run.job.id == 1 for work in step.result.plan.works)]


def test_expert_loads_by_hand():
    """4 layers, 4 steps: chunks of 2 load (2 + 1) experts each time; groups load 5 once and 1 otherwise."""
    chunks, layers = hand_case(Chunked(3)), hand_case(Layered(unit=2))
    assert len(chunks) == len(layers) == 4
    assert sum(step.result.expert_loads for step in chunks) == 4 * 4 * (2 + 1) == 48
    assert sum(step.result.expert_loads for step in layers) == 4 * (5 + 3 * 1) == 32
    assert all(0 in {drawn.job for drawn in step.written} for step in layers), "who writes never waits"


def test_one_group_is_a_step_of_whole_prompts():
    jobs = [Job(0, (9,), 8), Job(1, tuple(range(8)), 3, arrival=0.5), Job(2, (3, 4), 2, arrival=1.5)]
    setup = toy.Setup(ahead=0)
    whole = toy.run(jobs, Chunked(10**6, watermark=0), setup, latency=UNIT)
    layered = toy.run(jobs, Layered(unit=10**6), setup, latency=UNIT)
    assert toy.table(layered) == toy.table(whole)


def test_a_cohort_walks_before_the_next_one_begins():
    """Prompts of 3 and 5 walk 2 groups of 2 layers; one of 2 that arrives meanwhile comes after them."""
    jobs = [Job(0, (1, 2, 3), 2), Job(1, (4, 5, 6, 7, 8), 2), Job(2, (9, 9), 1, arrival=0.5)]
    served = toy.run(jobs, Layered(unit=4), toy.Setup(ahead=0), latency=UNIT)
    windows = [{work.run.job.id: work[1:] for work in plan.works} for plan in served.plans]
    assert windows == [
        {0: (0, 3, 0, 2), 1: (0, 5, 0, 2)},
        {0: (0, 3, 2, 4), 1: (0, 5, 2, 4)},
        {0: (3, 1, 0, 4), 1: (5, 1, 0, 4), 2: (0, 2, 0, 4)},
    ]


def test_a_prompt_longer_than_the_cap_walks_in_parts():
    served = toy.run([Job(0, tuple(range(10)), 1)], Layered(unit=3, cap=6), toy.Setup(ahead=0), latency=UNIT)
    windows = [work[1:] for plan in served.plans for work in plan.works]
    assert windows == [(0, 6, 0, 2), (0, 6, 2, 4), (6, 4, 0, 2), (6, 4, 2, 4)]


@pytest.mark.parametrize("name", ["unit", "cap"])
def test_impossible_settings(name):
    with pytest.raises(UsageError, match=f"scheduler.{name}=0 must be at least 1"):
        Layered(**{name: 0})
