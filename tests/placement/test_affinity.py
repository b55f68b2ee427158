"""Placements against all placements that there are, at sizes where one can try them."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.errors import UsageError
from moejax.placement.affinity import (
    Topology,
    affinity,
    ascend,
    contiguous,
    placement_cost,
    placement_to_order,
    solve_placement,
    transition_counts,
)

# Eight tokens, three layers, four experts.
TRACE_LN = np.array(
    [[0, 1, 2], [0, 1, 2], [0, 3, 2], [1, 0, 3], [1, 0, 3], [2, 2, 1], [3, 2, 0], [3, 2, 1]]
).T
COUNTS = transition_counts(TRACE_LN, 4)


def moves(trace_LN, placement) -> int:
    """Changes of device, counted token by token."""
    return sum(
        placement[j, token[j]] != placement[j + 1, token[j + 1]]
        for token in trace_LN.T
        for j in range(len(trace_LN) - 1)
    )


def balanced(E, P):
    """All placements of one layer."""
    return sorted(set(itertools.permutations(np.repeat(np.arange(P), E // P).tolist())))


def fewest_moves(counts, P) -> int:
    layers = itertools.product(balanced(counts.shape[1], P), repeat=len(counts) + 1)
    hops = (placement_cost(counts, np.array(place), Topology(P)).hops for place in layers)
    return round(min(hops) * counts[0].sum())


def markov(concentration, num_tokens, seed, E=8, L=6):
    """Two traces of one chain of experts."""
    rng = np.random.default_rng(0)
    share_LEE = rng.dirichlet(np.full(E, concentration), (L - 1, E)).cumsum(-1)
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, E, num_tokens)]
    for share_EE in share_LEE:
        rows.append((rng.random((num_tokens, 1)) > share_EE[rows[-1], :-1]).sum(axis=1))
    return np.array(rows)


def test_by_hand():
    assert COUNTS[0].tolist() == [[0, 2, 0, 1], [2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0]]
    plain = placement_cost(COUNTS, contiguous(3, 4, 2), Topology(2))
    assert plain.hops == 1.0 and plain.hop_fraction == 0.5  # 8 hops of 16
    found = solve_placement(COUNTS, Topology(2))
    assert moves(TRACE_LN, found) == fewest_moves(COUNTS, 2) == 2
    assert found[:2].tolist() == [[0, 0, 1, 1]] * 2 and found[2].tolist() == [1, 1, 0, 0]


def test_load_is_the_share_of_tokens():
    cost = placement_cost(COUNTS, contiguous(3, 4, 2), Topology(2))
    assert cost.load_LP.tolist() == [[5 / 8, 3 / 8], [4 / 8, 4 / 8], [3 / 8, 5 / 8]]
    assert cost.max_load == 1.25


def test_affinity_is_a_share_and_even_where_nothing_was_seen():
    np.testing.assert_allclose(affinity(COUNTS)[0, 0], [0, 2 / 3, 0, 1 / 3])
    assert (affinity(np.zeros((1, 2, 2), int)) == 0.5).all()


def test_tokens_that_are_nowhere_do_not_count():
    trace_LN = TRACE_LN.copy()
    trace_LN[1, 0] = 4
    assert transition_counts(trace_LN, 4).sum() == COUNTS.sum() - 2


def test_one_device_has_no_hops_and_as_many_as_experts_are_matchings():
    assert placement_cost(COUNTS, solve_placement(COUNTS, Topology(1)), Topology(1)).hops == 0
    found = solve_placement(COUNTS, Topology(4))
    assert (np.sort(found, axis=1) == np.arange(4)).all()
    best = sum(max(sum(n[p, q] for p, q in enumerate(order)) for order in balanced(4, 4)) for n in COUNTS)
    assert moves(TRACE_LN, found) == COUNTS.sum() - best


def test_a_chain_that_stays_has_no_hops():
    counts = np.stack([10 * np.eye(8, dtype=int)] * 3)
    found = solve_placement(counts, Topology(4, nodes=2))
    assert placement_cost(counts, found, Topology(4, nodes=2)).hops == 0


@functools.cache
def chain(concentration):
    return [transition_counts(markov(concentration, 3000, seed), 8) for seed in (1, 2)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(2, 1), (4, 1), (4, 2), (8, 2)]))
def test_properties_of_a_placement(seed, shape):
    topology = Topology(*shape)
    P = topology.devices
    trace_LN = markov(0.1, 50, seed)
    counts = transition_counts(trace_LN, 8)
    found = solve_placement(counts, topology, restarts=2, seed=seed)
    assert (np.apply_along_axis(np.bincount, 1, found, minlength=P) == 8 // P).all()
    cost = placement_cost(counts, found, topology)
    assert round(cost.hops * 50) == moves(trace_LN, found)
    assert round(cost.inter * 50) == moves(trace_LN, found // topology.per_node)
    assert abs(cost.hops - cost.intra - cost.inter) < 1e-9
    relabel = np.random.default_rng(seed).permutation(P)
    flat = placement_cost(counts, relabel[found], Topology(P))
    assert abs(flat.hops - cost.hops) < 1e-9, "names of devices do not count"
    order = placement_to_order(found)
    assert (np.take_along_axis(found, order, 1) == contiguous(6, 8, P)).all()


def test_relabelling_one_layer_alone_changes_the_cost():
    place = contiguous(3, 4, 2)
    place[2] = 1 - place[2]
    assert placement_cost(COUNTS, place, Topology(2)).hop_fraction == 2 / 16


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_sweeps_never_lose_and_small_ones_find_the_optimum(seed):
    trace_LN = np.random.default_rng(seed).integers(0, 4, (3, 12))
    counts = transition_counts(trace_LN, 4)
    _, stays = ascend(counts, contiguous(3, 4, 2), 2)
    assert stays == sorted(stays)
    found = solve_placement(counts, Topology(2))
    assert moves(trace_LN, found) <= moves(trace_LN, contiguous(3, 4, 2))
    assert moves(trace_LN, found) == fewest_moves(counts, 2)


@pytest.mark.parametrize(("P", "most"), [(2, 0.2), (4, 0.32), (8, 0.43)])
def test_sharp_transitions_gain_on_other_tokens(P, most):
    fit, test = chain(0.05)
    found = placement_cost(test, solve_placement(fit, Topology(P)), Topology(P))
    plain = placement_cost(test, contiguous(6, 8, P), Topology(P))
    assert found.hop_fraction < most < 0.8 * plain.hop_fraction


def test_without_affinity_there_is_no_gain():
    fit, test = chain(100.0)
    found = placement_cost(test, solve_placement(fit, Topology(4)), Topology(4))
    assert abs(found.hop_fraction - 0.75) < 0.03


def test_refusals():
    with pytest.raises(UsageError, match="8 experts do not split evenly over 3 devices"):
        solve_placement(np.zeros((1, 8, 8), int), Topology(3))
    with pytest.raises(UsageError, match="6 devices in 4 nodes"):
        Topology(6, nodes=4)
    with pytest.raises(UsageError, match="1 layers with experts have no transition"):
        transition_counts(TRACE_LN[:1], 4)
