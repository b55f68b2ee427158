"""The planner of pools: published arithmetic, then its choices against all choices."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from moejax.analysis import pool_planner
from moejax.analysis.pool_latency import DecodeTime, Latency, PrefillTime
from moejax.analysis.pool_planner import Cluster, Placement, Slo
from moejax.analysis.pool_records import Instance, Pools, draw
from moejax.analysis.pool_simulator import simulate
from moejax.errors import UsageError
from tests.analysis.opt_13b import ONE, TWO

CHAT = draw(np.random.default_rng(0).integers([50, 20], [900, 200], size=(300, 2)), 60)
GIB = 2**30
A100 = Cluster(nodes=1, node=2, memory=80 * GIB, weights=26 * GIB, token=pool_planner.kv_bytes(40, 40, 128))


def test_bytes_of_a_prompt():
    """512 tokens of OPT-66B: 1.125 GiB; ten of them per second are 96.6 Gbit/s."""
    size = 512 * pool_planner.kv_bytes(64, 72, 128)
    assert size == 1.125 * GIB
    assert 10 * size * 8 / 1e9 == pytest.approx(96.6, abs=0.05)


def test_replicas_by_hand():
    unit = Placement(Instance(TWO, tp=2), Instance(ONE), prefill_goodput=3.4, decode_goodput=4.0)
    assert unit.replicas(10) == (3, 3) and unit.devices(10) == 9
    assert unit.per_device == pytest.approx(1 / (2 / 3.4 + 1 / 4))


def test_goodput_of_a_queue_by_hand():
    """Prompts of 1 s come in pairs: the second waits for the first, and at high rates for the pair before."""
    pairs = draw(np.array([[1, 1]]), 20)
    pairs = type(pairs)(np.repeat(np.arange(10.0), 2), pairs.prompt, pairs.output)
    slow = Pools(Instance(Latency(PrefillTime(1, 0, 0), DecodeTime(1, 0, 0))), None, saturation=1)
    serve = lambda sent: simulate(slow, sent)
    own = 19 / 9  # per second, as they are
    # Half are answered in 1 s as long as pairs are 2 s apart.
    found = pool_planner.goodput(serve, pairs, Slo(1.0 + 1e-6, 1, share=0.5), eps=1e-4)
    assert found == pytest.approx(own / 2, rel=1e-3)
    assert pool_planner.goodput(serve, pairs, Slo(1.0 + 1e-6, 1, share=0.6)) == pytest.approx(0, abs=1e-3)
    assert pool_planner.goodput(serve, pairs, Slo(1.0 + 1e-6, 1, share=0.5), most=0.5) == 0.5


def test_a_burst_is_no_rate():
    """20 prompts of 1 s, whatever the target: all at once they stay 10.5 s, longer than they arrive."""
    sent, slow = draw(np.array([[1, 1]]), 20), Latency(PrefillTime(1, 0, 0), DecodeTime(1, 0, 0))
    serve = lambda sent: simulate(Pools(Instance(slow), None, saturation=1), sent)
    assert 0.5 < pool_planner.goodput(serve, sent, Slo(1e6, 1)) < 3


def test_attainment_falls_with_the_rate():
    pools = Pools(Instance(ONE), Instance(ONE), saturation=1)
    shares = [simulate(pools, CHAT.at_rate(rate)).attainment(0.25, 0.1) for rate in (0.1, 1, 2, 4, 8, 16)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.9 > 0.5 > shares[-1]


def test_apart_every_instance_is_tried():
    slo = Slo(0.25, 0.1)
    found = pool_planner.search_high(A100, {1: ONE, 2: TWO}, CHAT, slo)
    rates = {}
    for tp, pp in ((1, 1), (1, 2), (2, 1)):
        instance = A100.instance({1: ONE, 2: TWO}[tp], tp, pp)
        for phase, pools, target in (
            ("prefill", A100.pools(instance, None), Slo(0.25, math.inf)),
            ("decode", A100.pools(None, instance), Slo(math.inf, 0.1)),
        ):
            rate = pool_planner.goodput(lambda sent, pools=pools: simulate(pools, sent), CHAT, target)
            rates[phase, tp, pp] = rate / instance.devices
    for phase, instance in (("prefill", found.prefill), ("decode", found.decode)):
        per_device = {key[1:]: rate for key, rate in rates.items() if key[0] == phase}
        assert (instance.tp, instance.pp) == max(per_device, key=per_device.get)
    assert (
        found.prefill_goodput / found.prefill.devices == rates["prefill", found.prefill.tp, found.prefill.pp]
    )


def test_the_memory_is_what_the_weights_leave():
    instance = A100.instance(ONE, 1, 1)
    assert instance.room == 54 * GIB // (2 * 40 * 40 * 128 * 2)
    assert not Cluster(1, 1, 26 * GIB, 26 * GIB, 1.0).fits(1)
    with pytest.raises(UsageError, match="do not fit on 1 devices"):
        pool_planner.search_high(Cluster(1, 1, 80, 81, 1.0), {1: ONE}, CHAT, Slo(1, 1))


def test_together_every_pair_is_tried():
    cluster = Cluster(2, 3, 80 * GIB, 26 * GIB, A100.token, bandwidth=50e9)
    slo, latencies = Slo(0.4, 0.06), {1: ONE, 2: TWO}
    found = pool_planner.search_low(cluster, latencies, CHAT, slo, eps=0.05)
    best = 0.0
    for inter, (tp_p, pp_p, tp_d, pp_d) in itertools.product((1, 2), itertools.product((1, 2, 3), repeat=4)):
        if max(tp_p, tp_d) > 2 or tp_p * pp_p + tp_d * pp_d > 3:
            continue
        pools = cluster.pools(
            cluster.instance(latencies[tp_p], tp_p, pp_p * inter),
            cluster.instance(latencies[tp_d], tp_d, pp_d * inter),
        )
        rate = pool_planner.goodput(lambda sent, pools=pools: simulate(pools, sent), CHAT, slo, eps=0.05)
        best = max(best, rate / pools.devices)
    assert found.per_device == best > 0
    assert found.prefill_goodput == found.decode_goodput


def test_slow_links_cost_goodput():
    pair = A100.instance(ONE, 1, 1), A100.instance(ONE, 1, 1)
    clusters = (dataclasses.replace(A100, bandwidth=bandwidth) for bandwidth in (300e9, 1e9))
    fast, slow = (
        pool_planner.search_counts(cluster, pair, [(1, 1)], CHAT, Slo(0.4, 0.06)).per_device
        for cluster in clusters
    )
    assert slow < 0.9 * fast


def test_a_target_that_nobody_meets():
    with pytest.raises(UsageError, match="no prefill instance meets"):
        pool_planner.search_high(A100, {1: ONE}, CHAT, Slo(0.001, 0.1))


def test_three_to_one():
    """Where reading takes three times as long as writing, three readers feed one writer."""
    latency = Latency(PrefillTime(0.3, 0, 0), DecodeTime(0.01, 0, 0.0))
    pair = Instance(latency), Instance(latency, max_requests=1)
    sent = draw(np.array([[1, 11]]), 200)
    unit = pool_planner.search_counts(
        Cluster(1, 8, 1, 0, 0, saturation=1), pair, [(1, 1), (2, 1), (3, 1), (4, 1)], sent, Slo(2.0, 0.2)
    )
    assert (unit.num_prefill, unit.num_decode) == (3, 1)
