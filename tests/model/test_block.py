"""What a block is made of."""

import jax
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import block as one_block
from moejax.model import forward as model
from tests.contracts import tiny


def test_options_that_are_off_add_no_parameter():
    """And those that are on the norms and the second ffn that they need."""
    m = tiny.model()
    names = lambda **options: {
        path.split("/")[0]
        for path, _ in sp.leaves(one_block.specs(m, BlockConfig(tiny.ATTN, Dense(8), **options)))
    }
    assert names() == {"pre", "attn", "post", "ffn"}
    assert names(post_norms=True) - names() == {"attn_out", "ffn_out"}
    assert names(after=Dense(4)) - names() == {"pre_after", "after"}
    assert names(after=Dense(4), post_norms=True) - names(after=Dense(4)) == {
        "attn_out",
        "ffn_out",
        "after_out",
    }


def test_a_second_ffn_that_routes_is_refused():
    """Nobody would see whom it chose."""
    m = tiny.model(BlockConfig(tiny.ATTN, Dense(8), after=tiny.MOE))
    batch = tiny.document([[1, 2]])
    with pytest.raises(UsageError, match=r"after=Moe routes; put it in the place of ffn"):
        jax.eval_shape(lambda params: model.forward(params, m, batch).logits_BTV, sp.shapes(model.specs(m)))
