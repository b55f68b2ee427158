"""Capacity on the simulated clock: where it must lie, and what it depends on."""

import math

import pytest

from moejax.bench.papers import sarathi_serve
from moejax.serving.schedulers.chunked import Chunked


def test_the_strict_promise():
    """Five steps of 32 writers at 47 ms + 0.18 ms a token."""
    assert math.isclose(sarathi_serve.STRICT, 5 * (0.047 + 32 * 0.18e-3))


def test_another_rate_moves_the_same_requests():
    slow, fast = (sarathi_serve.load(5, rate, seed=1) for rate in (0.5, 2.0))
    assert [job.prompt for job in slow] == [job.prompt for job in fast]
    assert [job.arrival for job in slow] == pytest.approx([4 * job.arrival for job in fast])


def test_capacity_is_where_the_promise_breaks():
    """Rates that were tried and kept it are below, to 2.5%; a step that is too long keeps it at no rate."""
    found, tried = sarathi_serve.capacity(12, Chunked(1024), seed=0)
    kept = [rate for rate, gap in tried if gap <= sarathi_serve.STRICT and rate <= found]
    assert kept and max(kept) == found
    assert all(rate > found for rate, gap in tried if gap > sarathi_serve.STRICT)
    assert sarathi_serve.capacity(12, Chunked(4096), seed=0)[0] < found
