"""Who is not trained on, and how much room experts have; the worked numbers are those of the parts."""

import dataclasses

import numpy as np
import pytest

from moejax.bench.domains import Domains
from moejax.bench.papers import openmoe
from moejax.routers.select.capacity import openmoe_slots
from moejax.training.data.packing import Rows
from tests.analysis.routing import traces


def text() -> Domains:
    """Eight rows of one domain and two of another, two tokens each."""
    row_N2 = np.repeat(np.arange(10, dtype=np.int32)[:, None], 2, axis=1)
    rows = Rows(row_N2, row_N2, row_N2, row_N2, row_N2 > 0)
    return Domains(("own", "foreign"), None, rows, np.array([0] * 8 + [1] * 2), {}, "f", True)


def test_foreign_text_is_left_out_or_rare():
    without = openmoe.trained_without(text(), "foreign")
    assert without.train.token_NT[:, 0].tolist() == list(range(8))
    assert without.train_label_N.tolist() == [0] * 8
    some = openmoe.trained_without(text(), "foreign", share=1 / 9)  # one row beside eight
    assert some.train.token_NT[:, 0].tolist() == list(range(9))
    assert len({text().fingerprint, without.fingerprint, some.fingerprint}) == 3


def test_a_share_of_training_is_the_same_training_cut_short():
    whole, part = (openmoe.run_of(openmoe.Settings(steps=100), share) for share in (1.0, 0.3))
    assert part.train.steps == 30
    assert dataclasses.replace(part, train=dataclasses.replace(part.train, steps=100)) == whole
    assert whole.train.optim.schedule == "constant"  # else earlier steps would depend on their number


def test_room_by_hand():
    """arXiv 2402.01739: 4096 tokens and 32 experts have 160 slots in training and 256 in evaluation."""
    assert [openmoe_slots(4096, 32, 2, factor) for factor in (1.25, 2.0)] == [160, 256]
    moe = openmoe.run_of(openmoe.Settings()).model.groups[0].blocks[1].ffn
    assert (moe.selector.factor, openmoe.limited(moe).selector.factor) == (1.25, 2.0)


def test_drops_are_means_over_layers_and_choices():
    kept = [[[1, 1]] * 4 + [[1, 0]] * 4]
    trace = traces.trace([[[0, 1]] * 8], 2, kept=kept)
    np.testing.assert_allclose(openmoe.drops(trace), [0] * 4 + [0.5] * 4)


@pytest.mark.parametrize("size", ["tiny", "default", "full"])
def test_settings_make_runs(size):
    assert openmoe.run_of(openmoe.PAPER.sizes[size]).model.num_layers % 2 == 0
