"""Parts that layers share and what tokens carry, with an ffn that counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import forward as model
from moejax.seams import Ffn
from moejax.specs import Constant, Spec
from tests.contracts import tiny


@dataclasses.dataclass(frozen=True)
class Counting(Ffn):
    """Adds the shared number to what the token carries, and gives the sum so far."""

    step: float = 2.0
    start: float = 10.0

    shared = "step"

    def specs(self, m):
        return {}

    def shared_specs(self, m):
        return {"step": Spec((), (), Constant(self.step))}

    def prepare(self, p, m, batch, cache):
        return {"step": p["step"] * jnp.max(batch.token_BT)}, cache

    def carry_specs(self, m):
        return {"sum": Spec((1,), (None,), Constant(self.start))}

    def apply(self, p, i):
        sum_BT1 = i.memory.carry["sum"] + i.shared["step"]["step"]
        y_BTD = jnp.broadcast_to(sum_BT1, i.x_BTD.shape)
        return y_BTD, None, i.memory.replace(carry=i.memory.carry | {"sum": sum_BT1})


def carried(m):
    """What the last layer carries out, of one token 3, with attention and dense layers silenced."""
    params = jax.tree.map(jnp.zeros_like, tiny.host_params(m))
    params["shared"] = jax.tree.map(jnp.asarray, tiny.host_params(m)["shared"])
    out = model.forward(params, m, tiny.document([[3]]), probe=lambda out, batch: out.h_BTD)
    return float(jax.tree.leaves(out.probes)[-1][-1, 0, 0, 0])


@pytest.mark.parametrize("scan", [True, False])
def test_the_sum_passes_layers_that_do_not_know_it(scan):
    """10 + 6 = 16 after the first counting layer and 22 after the second; the residual stream adds both."""
    blocks = (BlockConfig(tiny.ATTN, Counting()), BlockConfig(tiny.ATTN, Dense(8)))
    assert carried(tiny.model(*blocks, repeat=2, scan=scan)) == 16 + 22


def test_shared_parameters_are_stored_once():
    m = tiny.model(BlockConfig(tiny.ATTN, Counting()), repeat=3)
    assert model.specs(m)["shared"] == {"step": {"step": Spec((), (), Constant(2.0))}}
    assert "shared" not in model.specs(tiny.model())


@pytest.mark.parametrize("other", [Counting(step=3.0), Counting(start=0.0)])
def test_layers_that_disagree_are_refused(other):
    m = tiny.model(BlockConfig(tiny.ATTN, Counting()), BlockConfig(tiny.ATTN, other))
    with pytest.raises(UsageError, match=r"declare it differently.*same settings"):
        model.specs(m)
