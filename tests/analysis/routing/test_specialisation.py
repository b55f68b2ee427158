"""What experts are for, by hand."""

import numpy as np

from moejax.analysis.routing import specialisation as sp
from tests.analysis.routing import traces


def test_frequency_and_its_variation_by_hand():
    """Expert 0 takes half of domain 0 and all of domain 1; expert 1 the other half and nothing."""
    (layer,) = traces.one_layer([0, 1, 0, 0], 3).layers()
    label = np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(
        sp.frequency(layer, label, 3), [[0.5, 0.5, 0], [1, 0, 0], [np.nan, np.nan, np.nan]]
    )
    # deviation of 0.5 and 1 is 0.5 / sqrt(2), their mean 0.75
    want = [0.5 / np.sqrt(2) / 0.75, np.nan, np.nan]
    np.testing.assert_allclose(sp.domain_specialisation(layer, label, 3), want)


def test_even_experts_have_no_domain():
    (layer,) = traces.one_layer([0, 1, 0, 1], 2).layers()
    assert sp.domain_specialisation(layer, np.array([0, 0, 1, 1]), 2).tolist() == [0, 0]


def test_words_by_hand():
    """Id 7 goes to expert 1 in 3 of 4, id 8 always, id 9 is too rare."""
    (layer,) = traces.one_layer([1, 1, 1, 0, 1, 1, 0], 2).layers()
    token = np.array([7, 7, 7, 7, 8, 8, 9])
    np.testing.assert_array_equal(
        sp.vocabulary_specialisation(layer, token, min_count=2), [np.nan, (0.75 + 1) / 2]
    )
    np.testing.assert_array_equal(
        sp.vocabulary_specialisation(layer, token, min_count=1), [1, (0.75 + 1) / 2]
    )


def test_experts_alone_by_hand():
    """arXiv 2505.16056's figures of a trace of eight tokens, redone by hand."""
    (layer,) = traces.one_layer([0, 0, 1, 0, 2, 2, 3, 2], 5).layers()
    np.testing.assert_allclose(
        sp.expert_srp(layer, np.zeros(8, int), window=4), [2 / 3, 0.4, 0.7, 0.4, 0], atol=1e-12
    )
