"""Schedules and one AdamW update by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax.config import OptimConfig
from moejax.specs import Constant, Spec
from moejax.training import optimizer

CFG = OptimConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)


def rates(cfg, steps):
    schedule = optimizer.schedule(cfg, steps)
    return [float(schedule(update)) for update in range(steps + 1)]


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1 + 0.45 * (1 - 0.5**0.5), 0.1]),
    ],
)
def test_eight_updates_by_hand(name, tail):
    """Four quarters up, at once in motion; then four down, to a tenth just after the last update."""
    cfg = OptimConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1, schedule=name)
    np.testing.assert_allclose(rates(cfg, 8), [0.25, 0.5, 0.75, 1.0, *tail], rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_ends_at_the_peak():
    np.testing.assert_allclose(rates(CFG, 2)[:2], [0.5, 1.0], rtol=1e-6)


def test_without_warm_up_the_first_rate_is_the_peak():
    assert rates(OptimConfig(learning_rate=0.5, warmup_steps=0), 10)[0] == pytest.approx(0.5)


SPECS = {
    "matrix": Spec((1, 1), ("embed", "ffn"), Constant(2.0)),
    "scales_of_layers": Spec((1, 1), ("layer", None), Constant(2.0)),
}
PARAMS = {name: jnp.full((1, 1), 2.0) for name in SPECS}


def test_one_update_by_hand():
    """Adam's first update is the gradient's sign; a matrix decays by 0.1 * 2 on top, norm scales do not."""
    cfg = OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.1, clip_norm=0.0)
    adamw = optimizer.make(cfg, 10, SPECS)
    grads = {name: jnp.full((1, 1), 0.5) for name in SPECS}
    updates, _ = adamw.update(grads, adamw.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    assert float(new["matrix"][0, 0]) == pytest.approx(2 - 0.1 * (1 + 0.2), rel=1e-6)
    assert float(new["scales_of_layers"][0, 0]) == pytest.approx(2 - 0.1, rel=1e-6)


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 0.2), (10.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_together(clip_norm, factor):
    """(3, 4) has norm 5; Adam's first mean is (1 - b1) of what is left of it."""
    adamw = optimizer.make(OptimConfig(b1=0.9, clip_norm=clip_norm), 10, SPECS)
    grads = {"matrix": jnp.full((1, 1), 3.0), "scales_of_layers": jnp.full((1, 1), 4.0)}
    _, state = adamw.update(grads, adamw.init(PARAMS), PARAMS)
    mean = next(part.mu for part in state if hasattr(part, "mu"))
    assert float(mean["matrix"][0, 0]) == pytest.approx(0.1 * 3 * factor, rel=1e-5)
    assert float(mean["scales_of_layers"][0, 0]) == pytest.approx(0.1 * 4 * factor, rel=1e-5)
    assert mean["matrix"].dtype == jnp.float32
