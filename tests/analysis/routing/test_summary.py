"""The summary holds every figure, and JSON can hold the summary."""

import dataclasses
import json

import numpy as np
import pytest

from moejax.analysis.routing import balance, token_identity
from moejax.analysis.routing import local_consistency as local
from moejax.analysis.routing.summary import summarise
from tests.analysis.routing import traces


@pytest.fixture(scope="module")
def trace():
    return dataclasses.replace(traces.random(0, tokens=400, texts=5), name="x", step=9)


def test_figures_are_those_of_the_parts(trace):
    summary = summarise(trace)
    layer = next(iter(trace.layers()))
    own = summary.layers[0]
    assert (summary.tokens, summary.texts, summary.step, len(summary.layers)) == (400, 5, 9, 2)
    assert own.load == balance.load(layer).tolist()
    assert own.dropped == (layer.full_NK & ~layer.kept_NK).sum() / layer.full_NK.sum()
    count_WE = local.window_counts(layer.mask_NE, trace.text_N, 16)
    assert own.locality[1].srp == local.srp(count_WE, 16)
    assert own.caches[0].hits["sch"] == local.hit_rate(
        layer.expert_NK, 6, trace.texts(), own.caches[0].size, "sch"
    )
    assert own.identity.token.accuracy == pytest.approx(
        token_identity.lookup(trace.token_N, layer.top_N, trace.text_N % 2 == 0, 32).accuracy
    )


def test_random_routing_is_near_its_references(trace):
    for own in summarise(trace).layers:
        assert abs(own.sparsity.reuse - own.sparsity.reuse_iid) < 0.05
        assert abs(own.locality[0].srp.value - own.locality[0].iid) < 0.03
        assert abs(own.identity.token.accuracy - own.identity.token.baseline) < 0.15
        assert own.scores.entropy < np.log(own.num_experts)


def test_all_layers_share_a_cache():
    """Two equal layers of one expert per token: a shared cache of twice the size hits as often as each."""
    experts = np.random.default_rng(0).integers(0, 5, 100)
    summary = summarise(traces.trace(np.stack([experts, experts])[..., None], 5))
    assert [cache.size for cache in summary.whole_caches] == [2, 4, 6, 8]
    for alone, shared in zip(summary.layers[0].caches, summary.whole_caches, strict=True):
        np.testing.assert_allclose(alone.hits["lru"], shared.hits["lru"])
    assert summary.whole_locality[1].srp.value == pytest.approx(summary.layers[0].locality[1].srp.value)


def test_json_holds_it(trace):
    summary = summarise(trace, [trace, dataclasses.replace(traces.random(1), step=3)])
    plain = summary.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    same, other = summary.comparisons
    assert same.agreement == [1.0, 1.0] and [c.top_change for c in same.change] == [0.0, 0.0]
    assert (other.step, other.change) == (3, None)


def test_short_texts_and_free_widths():
    """No window fits, some tokens take nothing, and there is nothing to compare scores of."""
    expert = np.array([[0, 1, 2], [4, 4, 4], [3, 4, 4], [2, 0, 4]])
    summary = summarise(traces.one_layer(expert, 4, text=[0, 0, 1, 2]))
    assert summary.layers[0].locality == [] and summary.score_information is None
    assert summary.layers[0].slots_per_token == 1.5
    json.dumps(summary.to_dict(), allow_nan=False)
