"""Scores of given text are sums over the logits of a forward pass, whatever it is computed with."""

import dataclasses

import numpy as np
import pytest

import moejax
from moejax.errors import UsageError
from moejax.serving.score import Score, _scores, score

PAIRS = [
    ([1], [50, 60]),
    ([1, 70, 71, 72], [73]),
    ([1, *range(30, 50)], [*range(50, 60)]),
    ([1, 9], []),
    ([1, *range(40, 80)], [80, 81]),
]


def expected(model, context, continuation) -> Score:
    """From the logits of the whole text, in float64."""
    ids = [*context, *continuation][-(model.context + 1) :]
    padding = [1] * model.context  # one length, one program
    logits_TV = np.asarray(moejax.forward(model.params, model.cfg, [ids[:-1], padding]).logits[0], np.float64)
    log_prob_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    rows = range(len(ids) - 1 - len(continuation), len(ids) - 1)
    own = [log_prob_TV[t, ids[t + 1]] for t in rows]
    return Score(float(sum(own)), all(logits_TV[t].argmax() == ids[t + 1] for t in rows))


@pytest.mark.parametrize("batch_rows", [2, 4])
def test_a_score_is_the_sum_of_log_probabilities(model, batch_rows):
    found = dict(score(model, PAIRS, batch_rows))
    assert sorted(found) == list(range(len(PAIRS)))
    for i, pair in enumerate(PAIRS):
        wanted = expected(model, *pair)
        np.testing.assert_allclose(found[i].log_prob, wanted.log_prob, rtol=1e-5, atol=1e-5)
        assert found[i].is_greedy == wanted.is_greedy


def test_the_most_likely_continuation_is_greedy(model):
    (best,) = moejax.generate(model, [[1, 70]], max_tokens=3)
    ((_, found),) = score(model, [([1, 70], best.tokens)])
    assert found.is_greedy
    ((_, found),) = score(model, [([1, 70], (*best.tokens[:2], best.tokens[2] ^ 1))])
    assert not found.is_greedy


def test_few_programs_are_compiled(model):
    before = _scores._cache_size()
    found = list(score(model, [([1] * n, [5]) for n in range(1, 30)], 4))
    assert len(found) == 29 and _scores._cache_size() - before <= 1


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(UsageError, match="pair 1 has no context"):
        list(score(model, [([1], [2]), ([], [1])]))
    short = dataclasses.replace(model, context=4)
    with pytest.raises(UsageError, match="has 5 tokens, the model takes 4"):
        list(score(short, [([1], [2] * 5)]))
