"""Arms, sizes and figures by hand; those of SRP and of caches are tests of the analysis."""

import numpy as np
import pytest

from moejax.bench.papers import local_routing_consistency as program
from tests.analysis.routing import traces


def test_sizes_of_caches_by_hand():
    assert program.cache_sizes((1, 1.5, 2, 3, 4, 6), slots=2, num_experts=8) == [2, 3, 4, 6]


def test_a_cycle_has_no_consistency_beyond_chance():
    """arXiv 2505.16056's hit rates for the cycle 0 1 2 3 0 1 2 3: Belady 0.125, 0.5, 0.75."""
    trace = traces.trace([[[e % 4] for e in range(8)]], 4)
    rates = program.hit_rates(trace, [1, 2, 3], most_texts=1)
    assert rates.shape == (1, 3, 4)
    np.testing.assert_allclose(rates[0, :, program.POLICIES.index("belady")], [0.125, 0.5, 0.75])
    np.testing.assert_allclose(rates[0, :, program.POLICIES.index("lru")], [0.125, 0.25, 0.375])


def test_figures_of_routing_that_never_changes():
    seen = program.consistency(traces.trace([[[0]] * 32], 4), 1.5)
    assert (seen.srp, seen.shuffled, seen.held_out) == ([1.0], [1.0], 1.5)
    assert seen.load_std == pytest.approx(np.sqrt(3) / 4)  # of 1, 0, 0, 0


def test_arms_differ_in_one_thing():
    runs = program.arms(program.Settings(more_arms=True))
    weight = {name: run.train.losses[1].weight for name, run in runs.items()}
    assert [weight[name] for name in (program.BALANCED, program.FREE, program.STRONG)] == [0.01, 0, 0.1]
    shape = {name: run.model.groups[0].blocks[0].ffn for name, run in runs.items()}
    slots = {name: (ffn.num_experts, ffn.selector.num_slots) for name, ffn in shape.items()}
    assert slots["3 experts per token and a shared one"] == (15, 3)
    assert (slots["1 expert per token"], slots["4 experts per token"]) == ((16, 1), (16, 4))
