"""What the meter reports, by hand, and that it costs next to nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from moejax import specs
from moejax.analysis.flops import count
from moejax.attention.gqa import Gqa
from moejax.losses.next_token import NextToken
from moejax.model import forward
from moejax.training import objective
from moejax.training.router_meter import RouterMeter
from tests.contracts import tiny


def test_figures_by_hand():
    """Two layers of four experts; twelve slots each, one dropped."""
    seen = {
        "slots_E": jnp.array([[6.0, 2, 2, 2], [3, 3, 3, 3]]),
        "entropy": jnp.array([3.0, 6]),
        "tokens": jnp.array([6.0, 6]),
        "dropped": jnp.array([1.0, 0]),
    }
    _, _, metrics = RouterMeter().total(((seen, {}),), {})
    got = {name.removeprefix("router/"): np.asarray(value).tolist() for name, value in metrics.items()}
    np.testing.assert_allclose(got.pop("load_LE"), [[1 / 2, 1 / 6, 1 / 6, 1 / 6], [1 / 4] * 4], rtol=1e-6)
    wanted = {"load_max": 1.5, "max_violation": 1.0, "entropy": 0.75, "dropped": 1 / 24}
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose([got[name] for name in wanted], list(wanted.values()), rtol=1e-6)


def test_it_adds_less_than_a_hundredth_to_a_step():
    """FLOPs and bytes of the compiled loss and gradient, with and without."""
    m = base.mixtral(256, Gqa(num_heads=2, num_kv_heads=2, head_width=32), base.moe(8, 64, 2), layers=1)
    batch = tiny.document(np.zeros((4, 64)))
    batch = batch.replace(target_BT=batch.token_BT, weight_BT=np.ones((4, 64), np.float32))

    def cost(*losses):
        states = tuple({} for _ in losses)
        step = functools.partial(objective.value_and_grad, m=m, losses=losses, states=states, key=None)
        lowered = jax.jit(lambda params: step(params, batch=batch)).lower(specs.shapes(forward.specs(m)))
        return count(lowered.compile(compiler_options=tiny.QUICK_COMPILE))

    without, with_meter = cost(NextToken()), cost(NextToken(), RouterMeter())
    assert without.flops < with_meter.flops < 1.01 * without.flops
    assert without.bytes < with_meter.bytes < 1.01 * without.bytes
