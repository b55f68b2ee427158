"""OpenMoE's three findings, on traces where they hold by construction and where they do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis.routing import token_identity as ti
from tests.analysis.routing import traces

IDS = np.array([int(c) for c in "0000111222"])
EXPERTS = np.array([int(c) for c in "0001111202"])


def test_a_lookup_table_by_hand():
    found = ti.lookup(IDS, EXPERTS)
    got = (found.accuracy, found.information, found.entropy, found.uncertainty_coefficient)
    np.testing.assert_allclose(got, (0.8, 0.6390, 1.0549, 0.6058), atol=5e-5)
    assert (found.baseline, found.known) == (0.4, 1.0)


def test_a_table_is_tested_on_other_tokens():
    # made from the first five: 0 -> 0, 1 -> 1, most often 0; of the rest, 1 1 are known, 2 2 2 are not
    found = ti.lookup(IDS, EXPERTS, fit_N=np.arange(10) < 5)
    assert (found.accuracy, found.baseline, found.known) == (1.0, 0.0, 0.4)
    assert ti.lookup(IDS, EXPERTS, fit_N=np.arange(10) < 5, min_count=2).known == 0.0


@given(st.integers(0, 10**6))
def test_information_is_that_of_its_definition(seed):
    rng = np.random.default_rng(seed)
    count_AB = rng.integers(0, 4, (4, 3))
    count_AB[0, 0] += 1
    p = count_AB / count_AB.sum()
    want = sum(
        p[a, b] * np.log(p[a, b] / (p[a].sum() * p[:, b].sum()))
        for a in range(4)
        for b in range(3)
        if p[a, b]
    )
    np.testing.assert_allclose(ti.mutual_information(count_AB)[0], want, atol=1e-12)


def test_spread_by_hand():
    np.testing.assert_allclose(
        [ti.spread_of(32, used) for used in (1, 2, 32)], [0.1740, 0.1210, 0], atol=5e-5
    )
    ids = np.repeat(np.arange(4), 8)
    (own,) = traces.one_layer(ids, 32, token=ids).layers()
    np.testing.assert_allclose(ti.spread(ids, own, min_count=8), ti.spread_of(32, 1))
    (even,) = traces.one_layer(np.tile(np.arange(8), 4), 8, token=ids).layers()
    assert ti.spread(ids, even, min_count=8) == 0.0
    assert np.isnan(ti.spread(ids, even, min_count=9))


def test_previous_ids_stop_at_texts():
    trace = traces.one_layer([0, 0, 0, 0], 1, token=[5, 6, 7, 8], text=[0, 0, 1, 1])
    assert ti.previous_ids(trace).tolist() == [0, 6, 0, 8]


def test_agreement_by_hand():
    one = traces.one_layer([0, 0, 1, 1, 2], 3, token=[7, 7, 8, 8, 9])
    other = traces.one_layer([0, 1, 1, 2, 2, 1], 3, token=[7, 8, 8, 8, 8, 9])
    # 8 changed from 1 to 1 (a tie of two and two: the lower), 9 and 7 occur once in `other`
    assert ti.majority_agreement(one, other, min_count=2) == [1.0]
    assert ti.majority_agreement(one, other, min_count=1) == [5 / 6]
    assert np.isnan(ti.majority_agreement(one, other, min_count=3)).all()


def test_drops_by_hand():
    kept = [[[1, 1], [1, 0], [0, 1], [0, 0]]]
    trace = traces.one_layer([[0, 1], [0, 1], [0, 2], [0, 2]], 2, kept=kept)  # 2 is empty
    np.testing.assert_array_equal(ti.drops_by_place(trace, 2), [[[0, 1], [0.5, np.nan]]])
    np.testing.assert_array_equal(ti.drops_by_place(traces.one_layer([0, 0], 1), 1), [[[0.0]]])


def test_position_and_not_the_text_decides_where_a_drop_is():
    """The second half of a row of two texts suffers more, whatever the position in the text."""
    kept = np.array([True] * 4 + [False] * 4)[None, :, None]
    trace = traces.one_layer(np.zeros((8, 1), int), 2, kept=kept)
    assert ti.drops_by_place(trace, 2)[0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("rule", ["identity", "position"])
def test_what_the_router_looks_at_is_found(rule):
    rng = np.random.default_rng(0)
    ids, text = rng.integers(0, 8, 4000), np.repeat(np.arange(40), 100)
    place = np.tile(np.arange(100), 40)
    trace = traces.one_layer((ids if rule == "identity" else place // 13) % 8, 8, token=ids, text=text)
    (layer,) = trace.layers()
    fit = text < 20
    by_id, by_place = (ti.lookup(key, layer.top_N, fit, 10) for key in (trace.token_N, trace.pos_N))
    right, wrong = (by_id, by_place) if rule == "identity" else (by_place, by_id)
    assert right.accuracy == 1.0 and wrong.accuracy < 0.3
    assert right.uncertainty_coefficient > 5 * wrong.uncertainty_coefficient
