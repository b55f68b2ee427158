"""Routing fluctuation by hand, and what can be compared."""

import dataclasses

import numpy as np
import pytest

from moejax.analysis.routing.change import Change, change, changes
from moejax.errors import UsageError
from tests.analysis.routing import traces


def test_by_hand():
    a, b = [[0, 1], [0, 2], [1, 3], [2, 3]], [[1, 0], [0, 3], [1, 3], [0, 1]]
    assert change(a, b, 4) == Change(0.5, 0.5, 0.375)
    assert change(a, a, 4) == Change(0.0, 0.0, 0.0)


def test_empty_slots():
    # {0} to {0, 1}: half of the two stayed; nothing to nothing is no change
    assert change([[0, 4], [4, 4]], [[0, 1], [4, 4]], 4) == Change(0.5, 0.0, 0.25)


def test_layers_of_two_traces():
    one, other = (
        traces.random(0),
        dataclasses.replace(traces.random(0), expert_LNK=traces.random(1).expert_LNK),
    )
    assert [c.set_change for c in changes(one, one)] == [0, 0]
    found = changes(one, other)
    layer = [next(iter(trace.layers())) for trace in (one, other)]
    assert found[0].set_change == np.mean((layer[0].mask_NE != layer[1].mask_NE).any(axis=1))


def test_what_cannot_be_compared():
    with pytest.raises(UsageError, match="of different texts"):
        changes(traces.random(0), traces.random(1))
    wide = dataclasses.replace(traces.random(0), experts_L=np.array([6, 7], np.int32), score_LNE=None)
    with pytest.raises(UsageError, match=r"have \[6, 6\] and \[6, 7\] experts"):
        changes(traces.random(0), wide)
