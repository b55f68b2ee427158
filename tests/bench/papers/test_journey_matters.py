"""Equal compute, equal sizes, and where a pruned model lies between dense ones."""

import math

import numpy as np
import pytest

from moejax import specs as sp
from moejax.analysis.scaling_law import avg_params
from moejax.bench.papers import journey_matters as journey
from moejax.model import forward as decoder
from moejax.training.rules.gradual_prune import GradualPrune
from moejax.training.rules.masks import prunable

CFG = journey.PAPER.sizes["default"]


def matrices(model, active=False):
    specs = prunable(decoder.specs(model), GradualPrune(0.5).dense).values()
    return sum(math.prod(spec.shape) * (spec.used if active else 1) for spec in specs)


@pytest.mark.parametrize("params", [100_000, 72_000, 40_000, 20_000, 900_000])
def test_a_model_has_the_size_that_was_asked_for(params):
    model, size = journey.shaped(CFG, params)
    assert matrices(model) == size == pytest.approx(params, rel=0.01)


def test_a_mixture_is_counted_in_all_or_per_token():
    for active in (False, True):
        model, size = journey.shaped(CFG, 150_000, mixture=True, active=active)
        assert matrices(model, active) == size == pytest.approx(150_000, rel=0.02)


class Trained:
    """In the place of what training gives."""

    def __init__(self, loss):
        self.held_out_loss = loss
        self.loss_S = np.zeros(1)


@pytest.mark.parametrize("sparsity", CFG.sparsities)
def test_schedules_have_equal_compute(sparsity, monkeypatch):
    runs = []

    def train(run, text, seeds, cache, watch):
        runs.append(run)
        return [Trained(1.0)]

    monkeypatch.setattr(journey.replicas, "train", train)
    lab = journey.Lab(CFG, None, None)
    arms = [lab.pruned(sparsity, name) for name in journey.SCHEDULES]
    compute = [arm.size["average"] * arm.tokens for arm in arms]
    assert max(compute) / min(compute) < 1.02
    for run, arm in zip(runs, arms, strict=True):
        trace = [(0, 1.0), *run.train.rules[0].events(run.train.steps)]
        density = avg_params(trace, run.train.steps)
        assert arm.size["average"] == pytest.approx(density * arm.size["first"])
        assert arm.size["last"] == pytest.approx((1 - sparsity) * arm.size["first"])
        assert density * run.train.steps == pytest.approx(CFG.steps, rel=0.02)


def test_a_dense_size_of_equal_loss_by_hand():
    """Losses 3, 2, 1 at sizes 1e4, 1e5, 1e6: a loss of 1.5 is that of 10^5.5."""
    sizes = ((1e4, 3.0), (1e5, 2.0), (1e6, 1.0))
    dense = [journey.Arm({"first": size}, 1.0, [Trained(loss)]) for size, loss in sizes]
    ours = journey.Arm({"average": 1e5}, 1.0, [Trained(1.5)])
    found, average = journey._equal_size(ours, dense)
    assert found == [pytest.approx(10**5.5)] and average == [1e5]


def test_weights_per_token_are_those_that_are_left():
    model, _ = journey.shaped(CFG, 150_000, mixture=True)
    watch = journey.per_token(model, GradualPrune(0.5), 10)
    specs = decoder.specs(model)
    ones = sp.tree_map(lambda spec: np.ones(spec.shape, np.float32), specs)
    assert float(watch.see(ones)["weights"]) == pytest.approx(matrices(model, active=True))
    ones["group0"]["block0"]["ffn"]["experts"]["up"][:] = 0
    gone = specs["group0"]["block0"]["ffn"]["experts"]["up"]
    left = matrices(model, active=True) - math.prod(gone.shape) / journey.EXPERTS
    assert float(watch.see(ones)["weights"]) == pytest.approx(left)
