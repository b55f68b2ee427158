"""The program's own counts; placements and their costs are in tests/placement/test_affinity.py."""

import numpy as np

from moejax.bench.papers.exflow import Settings, sent
from moejax.placement.affinity import Topology, contiguous, placement_cost, solve_placement, transition_counts


def test_rows_that_travel_are_the_moves_of_the_placement():
    rng = np.random.default_rng(0)
    expert_LN = np.stack([np.arange(64) % 8, *((np.arange(64) + j) % 8 for j in rng.integers(0, 8, 3))])
    counts = transition_counts(expert_LN, 8)
    for placement in (contiguous(4, 8, 4), solve_placement(counts, Topology(4))):
        hops = placement_cost(counts, placement, Topology(4)).hops
        assert sent(Settings(), placement, expert_LN, 4) == round(64 * hops)
    assert hops == 0, "a chain that only shifts can be followed"
