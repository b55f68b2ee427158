"""SRP and SCH: the numbers of the paper's definitions by hand, oracles, and bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis.routing import local_consistency as lc

TRACE = np.array([0, 0, 1, 0, 2, 2, 3, 2])[:, None]
CYCLE = np.array([0, 1, 2, 3, 0, 1, 2, 3])[:, None]
ONE_TEXT = np.zeros(8, int)


def counts(expert_NK, E, m, text_N=None):
    mask = (expert_NK[:, :, None] == np.arange(E)).any(axis=1)
    return lc.window_counts(mask, np.zeros(len(mask)) if text_N is None else text_N, m)


def test_window_counts_by_hand():
    want = [[3, 2, 1, 1, 0], [1, 1, 1, 0, 0], [0, 1, 2, 2, 3], [0, 0, 0, 1, 1]]
    assert counts(TRACE, 4, 4).T.tolist() == want
    assert counts(TRACE, 4, 4, np.array([0] * 5 + [1] * 3)).T.tolist() == [row[:2] for row in want]
    assert counts(TRACE, 4, 9).shape == (0, 4)


def test_srp_by_hand():
    count_WE = counts(TRACE, 4, 4)
    each = [lc.srp(count_WE[:, [e]], 4) for e in range(4)]
    np.testing.assert_allclose([one.value for one in each], [2 / 3, 0.4, 0.7, 0.4])
    assert [one.threshold for one in each] == [2, 1, 2, 1]
    assert lc.srp(count_WE, 4) == lc.Srp(0.6, 2, 1.0)
    pairs = lc.srp(counts(TRACE, 4, 2), 2)
    assert (round(pairs.value, 4), pairs.threshold, round(pairs.size_ratio, 4)) == (0.7368, 1, 1.7143)
    # thresholds 0 and 1 tie: the smaller counts
    assert lc.srp(counts(CYCLE, 4, 4), 4) == lc.Srp(0.4, 0, 4.0)
    assert lc.srp(counts(TRACE, 5, 4)[:, [4]], 4) == lc.Srp(0.0, 0, 0.0)


@pytest.mark.parametrize("m, want", [(4, [0.6, 0.85, 1, 1]), (8, [0.375, 0.75, 0.875, 1])])
def test_static_caches_by_hand(m, want):
    np.testing.assert_allclose([lc.sch_static(counts(TRACE, 4, m), size) for size in (1, 2, 3, 4)], want)


CYCLED = {"lru": [0.125, 0.25, 0.375, 1], "sch": [0.125, 0.375, 0.625, 1], "belady": [0.125, 0.5, 0.75, 1]}


@pytest.mark.parametrize("policy", CYCLED)
def test_caches_by_hand(policy):
    rates = [lc.hit_rate(CYCLE, 4, [slice(0, 8)], size, policy, m=4) for size in (1, 2, 3, 4)]
    np.testing.assert_allclose(rates, CYCLED[policy])


@pytest.mark.parametrize("policy", lc.POLICIES)
def test_constant_routing_always_hits(policy):
    expert_NK = np.tile([2, 0], (30, 1))
    assert lc.srp(counts(expert_NK, 4, 16), 16) == lc.Srp(1.0, 1, 1.0)
    assert lc.hit_rate(expert_NK, 4, [slice(0, 30)], 2, policy) == 1.0


@pytest.mark.parametrize(
    "E, k, want",
    [
        (8, 2, 0.451),
        (16, 4, 0.451),
        (64, 8, 0.321),
        (64, 6, 0.282),
        (128, 8, 0.237),
        (60, 4, 0.243),
        (128, 1, 0.124),
    ],
)
def test_independent_routing_as_simulated(E, k, want):
    assert abs(lc.srp_iid(E, k, 16) - want) < 2e-3  # of a finite sample
    assert lc.srp_iid(E, E, 16) == 1.0


def test_independent_routing_is_the_limit_of_a_simulation():
    rng = np.random.default_rng(0)
    expert_NK = np.argsort(rng.random((20_000, 12)), axis=1)[:, :3]
    assert abs(lc.srp(counts(expert_NK, 12, 8), 8).value - lc.srp_iid(12, 3, 8)) < 4e-3


def random_routing(seed, tokens=24, E=5, k=2):
    return np.argsort(np.random.default_rng(seed).random((tokens, E)), axis=1)[:, :k]


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_no_other_choice_of_windows_is_better(seed, m):
    """F1 of switching on the windows with the most uses, for every number of them."""
    count_WE = counts(random_routing(seed), 5, m)
    f_I = -np.sort(-count_WE.ravel())
    f1_I = 2 * np.cumsum(f_I) / (m * np.arange(1, len(f_I) + 1) + f_I.sum())
    found = lc.srp(count_WE, m)
    np.testing.assert_allclose(found.value, f1_I.max(), rtol=1e-12)
    assert found.value >= 2 * 0.4 / 1.4 - 1e-12  # always on, r = k / E
    assert found.value == 1.0 or m > 1
    assert found.threshold in (0, 1) or np.ceil(m * found.value / 2) == found.threshold


def simulated(tokens, E, size, m):
    """SCH step by step, every look-ahead counted anew."""
    seen = list(dict.fromkeys(e for token in tokens for e in token))
    cache, last, clock, hits = seen[:size], dict.fromkeys(range(E), -1), 0, 0
    for i, token in enumerate(tokens):
        hits += sum(e in cache for e in token)
        for j, e in enumerate(token):
            left = token[j + 1 :] + [x for later in tokens[i + 1 : i + m] for x in later]
            if e not in cache:
                worst = min(cache, key=lambda x: (left.count(x), last[x]))
                cache = [x for x in cache if x != worst] + [e]
            last[e], clock = clock, clock + 1
    return hits / sum(map(len, tokens))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 8))
def test_sch_is_its_simulation(seed, size, m):
    expert_NK = random_routing(seed)
    want = np.mean([simulated(expert_NK[own].tolist(), 5, size, m) for own in (slice(0, 9), slice(9, 24))])
    rate = lc.hit_rate(expert_NK, 5, [slice(0, 9), slice(9, 24)], size, "sch", m)
    np.testing.assert_allclose(rate, want, rtol=1e-12)


def best_of_all(experts, size):
    """Hits of the best policy there is for one expert per token, by trying every eviction."""
    states = {frozenset(list(dict.fromkeys(experts))[:size]): 0}
    for e in experts:
        new = {}
        for cache, hits in states.items():
            options = [cache] if e in cache else [cache - {out} | {e} for out in cache]
            for option in options:
                new[option] = max(new.get(option, 0), hits + (e in cache))
        states = new
    return max(states.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(1, 5))
def test_belady_is_the_best_for_one_expert_per_token(experts, size):
    expert_NK = np.array(experts)[:, None]
    texts = [slice(0, len(experts))]
    rates = {p: lc.hit_rate(expert_NK, 5, texts, size, p, m=3) for p in lc.POLICIES}
    assert rates["belady"] == best_of_all(experts, size) / len(experts)
    assert max(rates.values()) == rates["belady"]


@given(st.integers(0, 10**6))
def test_a_larger_cache_hits_more_and_a_full_one_always(seed):
    expert_NK = random_routing(seed)
    for policy in lc.POLICIES:
        rates = [lc.hit_rate(expert_NK, 5, [slice(0, 24)], size, policy, m=4) for size in range(1, 6)]
        assert rates[-1] == 1.0
        if policy in ("lru", "belady"):
            assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rates))


def test_empty_slots_demand_nothing():
    expert_NK = np.array([[0, 4], [4, 4], [1, 4], [0, 4]])
    dense = np.array([0, 1, 0])[:, None]
    for policy in lc.POLICIES:
        rate = lc.hit_rate(expert_NK, 4, [slice(0, 4)], 1, policy, m=9)
        assert rate == lc.hit_rate(dense, 4, [slice(0, 3)], 1, policy, m=9)
    assert lc.hit_rate(np.full((3, 1), 4), 4, [slice(0, 3)], 1, "lru") == 0.0


def test_shuffling_keeps_every_token_s_choice_together():
    expert_NK = random_routing(0)
    mixed = lc.shuffled(expert_NK)
    assert sorted(map(tuple, mixed)) == sorted(map(tuple, expert_NK)) and (mixed != expert_NK).any()
