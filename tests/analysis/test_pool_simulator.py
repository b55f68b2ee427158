"""Pools, event by event: by hand, against queueing theory, and against a second, plainer simulation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis import pool_latency
from moejax.analysis.pool_latency import DecodeTime, Latency, PrefillTime
from moejax.analysis.pool_records import Instance, Pools, Requests, draw
from moejax.analysis.pool_simulator import simulate, simulate_colocated
from moejax.errors import UsageError
from tests.analysis.opt_13b import ONE

SECOND = Latency(PrefillTime(0.1, 0, 0), DecodeTime(1.0, 0, 0))  # 0.1 s per prompt, 1 s per token


def requests(*rows):
    return Requests(*map(np.array, zip(*rows, strict=True)))


def test_two_requests_by_hand():
    """One batch of 300 tokens; contexts of 300 and 302 tokens are attended to."""
    found = simulate(Pools(Instance(ONE), Instance(ONE)), requests((0.0, 100, 3), (0.0, 200, 3)))
    np.testing.assert_allclose(found.ttft, 49.032e-3, atol=5e-7)
    np.testing.assert_allclose(found.last - found.first, 20.1998e-3 + 20.2011e-3, atol=1e-7)
    np.testing.assert_allclose(found.tpot, 20.2004e-3, atol=1e-7)


def test_long_prompts_run_alone():
    """100 and 400 tokens fill a batch of 512; 600 are read alone, and 10 after it."""
    reads = Latency(PrefillTime(1, 0, 0), DecodeTime(1, 0, 0))
    found = simulate(
        Pools(Instance(reads), None), requests((0, 100, 9), (0, 400, 9), (0, 600, 9), (0, 10, 9))
    )
    assert found.ttft.tolist() == [1, 1, 2, 3] and found.tpot.tolist() == [0] * 4


def test_decoding_waits_for_room_and_prefill_for_decoding():
    """Room for one text of 12 tokens: the second is fetched when the first is over, at 0.1 + 2 s."""
    small = Instance(SECOND, room=12)
    rows = (0.0, 10, 3), (0.0, 10, 3), (0.0, 10, 1)
    found = simulate(Pools(small, small, saturation=1), requests(*rows))
    # The third prompt finds room when the second leaves its place, and has no more to write.
    np.testing.assert_allclose(found.first, [0.1, 0.2, 2.2])
    np.testing.assert_allclose(found.last, [2.1, 4.1, 2.2])


def test_fetching_takes_time_one_after_another():
    pools = Pools(Instance(SECOND), Instance(SECOND), fetch=0.1)
    found = simulate(pools, requests((0.0, 10, 2), (0.0, 20, 2)))
    # 1 s and then 2 s on the link; the second joins the step after the one that is under way.
    np.testing.assert_allclose(found.last, [0.1 + 1 + 1, 0.1 + 3 + 1])


def test_a_pipeline_by_hand():
    """Two stages of 50 ms (and 2 ms each): the second batch follows one stage behind."""
    pools = Pools(Instance(SECOND, pp=2), Instance(SECOND, pp=2), saturation=1)
    found = simulate(pools, requests((0.0, 10, 2), (0.0, 10, 2)))
    np.testing.assert_allclose(found.first, [0.104, 0.156])
    # Stages of half a second; the second request's lane follows the first's.
    np.testing.assert_allclose(found.last, [1.104, 1.604])


def test_one_token_is_never_fetched():
    found = simulate(Pools(Instance(ONE), Instance(ONE), fetch=1e9), requests((0.0, 100, 1)))
    assert found.tpot[0] == 0 and found.last[0] == found.first[0] < 1


@pytest.mark.parametrize(
    "pp, wait", [(1, pool_latency.wait_one), (2, pool_latency.wait_pipeline)], ids=["one", "pipeline"]
)
def test_queues_follow_theory(pp, wait):
    """5 prompts of 0.1 s per second, as Poisson sends them: mean of 40,000 within 2%."""
    arrivals = draw(np.array([[1, 1]]), 40_000, seed=1).at_rate(5)
    instance = Instance(Latency(PrefillTime(0.1, 0, 0), DecodeTime(1, 0, 0)), pp=pp, stage_overhead=0.0)
    found = simulate(Pools(instance, None, saturation=1), arrivals)
    assert found.ttft.mean() == pytest.approx(wait(0.1, 5), rel=0.02)


@given(st.integers(0, 999), st.floats(0.5, 20))
def test_one_queue_is_lindleys(seed, rate):
    """Waits of a queue that serves one at a time obey w' = max(0, w + s - gap)."""
    rng = np.random.default_rng(seed)
    sent = draw(np.stack([rng.integers(1, 900, size=50), np.ones(50, int)], -1), 50, seed).at_rate(rate)
    found = simulate(Pools(Instance(ONE), None, saturation=1), sent)
    seconds, wait, wanted = [ONE.prefill(n, n * n) for n in sent.prompt.tolist()], 0.0, []
    for time, gap in zip(seconds, np.append(np.diff(sent.arrival), 0.0), strict=True):
        wanted.append(wait + time)
        wait = max(0.0, wait + time - gap)
    np.testing.assert_allclose(found.ttft, wanted, rtol=1e-9, atol=1e-12)


def plain(pools, sent):
    """One prefill and one decode instance without limits, as two loops, one after the other."""
    count, now, first = 0, 0.0, np.zeros(len(sent.prompt))
    while count < len(first):
        now = max(now, sent.arrival[count])
        batch = [count]
        while (i := batch[-1] + 1) < len(first) and sent.arrival[i] <= now:
            if sent.prompt[[*batch, i]].sum() > pools.saturation:
                break
            batch.append(i)
        now += pools.prefill.latency.prefill(sent.prompt[batch].sum(), (sent.prompt[batch] ** 2).sum())
        first[batch], count = now, batch[-1] + 1
    now, last, written = 0.0, first.copy(), np.ones(len(first), int)
    while (written < sent.output).any():
        going = written < sent.output
        now = max(now, first[going].min())
        going &= first <= now
        context = (sent.prompt + written - 1)[going].sum()
        now += pools.decode.latency.decode_step(context, going.sum())
        written[going] += 1
        last[going] = now
    return first, last


@given(st.integers(0, 999), st.floats(0.5, 30))
def test_two_loops_say_the_same(seed, rate):
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.integers(1, 700, size=30), rng.integers(1, 40, size=30)], -1)
    sent, pools = draw(lengths, 30, seed).at_rate(rate), Pools(Instance(ONE), Instance(ONE))
    found = simulate(pools, sent)
    first, last = plain(pools, sent)
    np.testing.assert_allclose(found.first, first, rtol=1e-9)
    np.testing.assert_allclose(found.last, last, rtol=1e-9)


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("pp", [1, 2])
def test_everybody_is_served_within_the_limits(counts, pp):
    lengths = np.random.default_rng(0).integers(1, 50, size=(60, 2))
    small = Instance(ONE, pp=pp, room=120, max_requests=3)
    sent = draw(lengths, 60).at_rate(50)
    found = simulate(Pools(small, small, *counts, fetch=1e-4), sent)
    assert (found.last >= found.first).all() and (found.first > sent.arrival).all()
    free = simulate(Pools(*[dataclasses.replace(small, room=math.inf, max_requests=999)] * 2, *counts), sent)
    assert free.last.mean() < found.last.mean()


def test_a_request_larger_than_an_instance():
    with pytest.raises(UsageError, match="a request holds 12 tokens, an instance has room for 11"):
        simulate(Pools(Instance(ONE), Instance(ONE, room=11)), requests((0.0, 10, 3)))


def test_one_instance_that_reads_first_by_hand():
    """The second prompt comes while the first writes: one token later it is read, and then both write."""
    sent = requests((0.0, 10, 3), (0.5, 10, 2), (9.0, 5, 1))
    found = simulate_colocated(Instance(SECOND), sent)
    np.testing.assert_allclose(found.first, [0.1, 1.2, 9.1])
    np.testing.assert_allclose(found.last, [2.2, 2.2, 9.1])
    assert found.tpot.tolist() == pytest.approx([1.05, 1.0, 0.0])
    alone = simulate_colocated(Instance(SECOND, room=12), sent)
    np.testing.assert_allclose(alone.first, [0.1, 2.2, 9.1])


def test_gaps_are_scaled_and_never_drawn_anew():
    sent = draw(np.array([[3, 4]]), 100)
    slow, fast = sent.at_rate(2), sent.at_rate(8)
    np.testing.assert_allclose(slow.arrival, 4 * fast.arrival)
    assert (len(sent.arrival) - 1) / slow.arrival[-1] == pytest.approx(2)
