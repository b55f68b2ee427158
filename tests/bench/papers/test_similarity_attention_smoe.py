"""Figures of the program on hand-made notes; the routers' own numbers are in test_token_graph.py."""

import types

import numpy as np
import pytest

from moejax.bench.papers import similarity_attention_smoe as program
from moejax.bench.report import Measure


def test_changes_towards_the_end_by_hand():
    """One layer, four tokens, as in the brief of changes: a half, a half, 3/8; then nothing changes."""
    before = [[0, 1], [0, 2], [1, 3], [2, 3]]
    end = [[1, 0], [0, 3], [1, 3], [0, 1]]
    expert_SLBTK = np.array([before, end, end])[:, None, None]
    found = types.SimpleNamespace(seen={"expert": expert_SLBTK})
    np.testing.assert_allclose(program.changes(found, 4), [[0.5, 0], [0.5, 0], [0.375, 0]])


def test_late_is_the_last_third():
    changed_RCS = np.arange(19.0)[None, None].repeat(3, axis=1)
    assert program.late(changed_RCS, program.SET) == pytest.approx([np.mean(range(13, 19))])


def pair(changes, perplexity):
    """Two ratios by their intervals, their values in the middle."""
    return tuple(
        Measure(name, sum(interval) / 2, "x", "lower", 3, interval=interval)
        for name, interval in (("changes", changes), ("perplexity", perplexity))
    )


@pytest.mark.parametrize(
    ("changes", "perplexity", "value", "interval"),
    [
        ((0.8, 0.9), (0.99, 1.01), 0, (0, 0)),  # fewer changes at equal perplexity: beaten
        ((0.9, 1.2), (0.97, 0.99), 0, (0, 0)),  # lower perplexity, changes unclear: beaten
        ((0.8, 0.9), (1.01, 1.03), 0, (0, 1)),  # one against the other: not beaten, does not keep up
        ((1.0, 1.2), (1.01, 1.03), 1, (1, 1)),  # surely as good in both
        ((0.9, 1.2), (0.99, 1.02), 1, (0, 1)),  # nothing is sure
    ],
)
def test_which_controls_keep_up(changes, perplexity, value, interval):
    found = program.keeping_up("attention", [pair(changes, perplexity)])
    assert (found.value, found.interval) == (value, interval)
