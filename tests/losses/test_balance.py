"""Load balance by hand and against float64 loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.losses.balance import GlobalBalance, MicroBatchBalance, SequenceBalance
from tests.losses import seen

FORMS = (GlobalBalance(), MicroBatchBalance(), SequenceBalance())
every_form = pytest.mark.parametrize("loss", FORMS, ids=lambda loss: type(loss).__name__)


@every_form
def test_two_tokens_two_experts_by_hand(loss):
    """Token 0 goes to expert 0 with shares (0.8, 0.2), token 1 to expert 1 with (0.4, 0.6).

    f = (1/2, 1/2), P = (0.6, 0.4): 2 * (0.3 + 0.2) = 1. If both go to expert 0: 2 * 0.6 = 1.2.
    """
    scores, batch = [[[0.8, 0.2], [0.4, 0.6]]], seen.batch([[True, True]])
    assert seen.value(loss, ([seen.routing([[[0], [1]]], scores)], batch)) == pytest.approx(1.0)
    assert seen.value(loss, ([seen.routing([[[0], [0]]], scores)], batch)) == pytest.approx(1.2)


@every_form
def test_sigmoid_scores_count_as_shares(loss):
    """Scores (0.9, 0.3) are shares (3/4, 1/4); all slots on expert 0: 2 * 3/4."""
    one = ([seen.routing([[[0]]], [[[0.9, 0.3]]])], seen.batch([[True]]))
    assert seen.value(loss, one) == pytest.approx(1.5)


@every_form
@pytest.mark.parametrize("E", [2, 8])
def test_perfect_balance_is_one_and_collapse_is_E(loss, E):
    even = seen.routing(np.arange(E)[None, :, None], np.full((1, E, E), 1 / E))
    collapsed = seen.routing(np.zeros((1, E, 1)), np.eye(E)[np.zeros((1, E), int)])
    batch = seen.batch(np.ones((1, E)))
    assert seen.value(loss, ([even], batch)) == pytest.approx(1.0)
    assert seen.value(loss, ([collapsed], batch)) == pytest.approx(E)


def test_texts_that_specialise_are_balanced_only_globally():
    """Row 0 uses expert 0 alone, row 1 expert 1 alone: 2 within each row, 1 over the batch.

    As two micro-batches the per-micro-batch form sees each row by itself.
    """
    rows = [([seen.routing([[[e]]], [np.eye(2)[[e]]])], seen.batch([[True]])) for e in (0, 1)]
    assert seen.value(GlobalBalance(), *rows) == pytest.approx(1.0)
    assert seen.value(SequenceBalance(), *rows) == pytest.approx(2.0)
    assert seen.value(MicroBatchBalance(), *rows) == pytest.approx(2.0)


def oracle(cells):
    """E * sum_e f_e P_e over (experts chosen, scores) of tokens, in float64 loops."""
    E = len(cells[0][1])
    slots_E, share_E = np.zeros(E), np.zeros(E)
    for chosen, score_E in cells:
        for e in chosen:
            if e < E:
                slots_E[e] += 1
        share_E += score_E / np.sum(score_E)
    return E * np.sum(slots_E / slots_E.sum() * share_E / len(cells))


def cells_of(layer, batch, rows):
    return [
        (layer.expert_BTK[b, t], np.float64(layer.score_BTE[b, t]))
        for b in rows
        for t in np.flatnonzero(batch.valid_BT[b])
    ]


@given(st.integers(0, 10_000))
def test_every_form_equals_loops(seed):
    micros = [seen.random(seed), seen.random(seed + 1)]
    count = len(micros[0][1].valid_BT)
    per_layer = {"GlobalBalance": [], "MicroBatchBalance": [], "SequenceBalance": []}
    for layer in range(2):
        cells = [cells_of(layers[layer], batch, range(count)) for layers, batch in micros]
        rows = [cells_of(layers[layer], batch, [b]) for layers, batch in micros for b in range(count)]
        per_layer["GlobalBalance"].append(oracle(cells[0] + cells[1]))
        per_layer["MicroBatchBalance"].append(np.mean([oracle(micro) for micro in cells]))
        per_layer["SequenceBalance"].append(np.mean([oracle(row) for row in rows if row]))
    for loss in FORMS:
        want = np.mean(per_layer[type(loss).__name__])
        assert float(seen.value(loss, *micros)) == pytest.approx(want, rel=1e-5)
