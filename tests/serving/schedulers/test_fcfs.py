"""First come, first served: a table of plans."""

import pytest

from moejax.errors import UsageError
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.simulated import Latency
from moejax.serving.state import Job
from tests.serving import toy


def test_plans_by_hand():
    """Two prompts of 3 and 4 in steps of 5 rows; a third arrives while they write, and they wait for it."""
    jobs = [Job(0, (1, 2, 3), 4), Job(1, (4, 5, 6, 7), 3), Job(2, (8, 9), 2, arrival=2.5)]
    served = toy.run(jobs, Fcfs(max_rows=5), toy.Setup(ahead=0), latency=Latency(1.0))
    assert toy.table(served) == [
        {0: 3, 1: 2},
        {1: 2},
        {0: 1, 1: 1},
        {2: 2},
        {0: 1, 1: 1, 2: 1},
        {0: 1},
    ]


def test_steps_without_rows():
    with pytest.raises(UsageError, match=r"scheduler\.max_rows=0 must be at least 1"):
        Fcfs(0)
