"""Taking experts of models that are sharded, quantised, mixed or grouped; what cannot be is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig, Group
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import forward
from moejax.quantised import Quantised
from moejax.routers.select.group_limited import GroupLimited
from moejax.surgery.cut.experts import cut_experts
from moejax.surgery.cut.permute import permute_experts
from moejax.surgery.take import per_block, per_layer, take_experts, take_sides
from tests.contracts import tiny

M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE))
KEEP = ((np.array([[0, 2], [1, 3]], np.int32),),)


def grouped():
    ffn = dataclasses.replace(
        tiny.MOE, selector=GroupLimited(2, num_groups=2, keep_groups=1, correction=True)
    )
    return tiny.model(BlockConfig(tiny.ATTN, ffn))


def test_by_hand():
    """Layer 0 keeps experts 0 and 2, layer 1 keeps 1 and 3, with their columns of the router."""
    params = tiny.params(M)
    new, cut = cut_experts(params, M, KEEP)
    old, left = (tree["group0"]["block0"]["ffn"] for tree in (params, new))
    for layer, rows in enumerate(([0, 2], [1, 3])):
        np.testing.assert_array_equal(left["experts"]["up"][layer], old["experts"]["up"][layer][rows])
        np.testing.assert_array_equal(left["score"]["w"][layer], old["score"]["w"][layer][:, rows])
    tiny.equal(new["group0"]["block0"]["attn"], params["group0"]["block0"]["attn"])
    assert cut.groups[0].blocks[0].ffn.num_experts == 2


def test_the_layers_of_a_model_and_its_blocks():
    """Two visits of (dense, routed) and then one of routed: three layers with experts."""
    moe = BlockConfig(tiny.ATTN, tiny.MOE)
    m = dataclasses.replace(
        tiny.model(BlockConfig(tiny.ATTN, Dense(8)), moe), groups=(tiny.model().groups[0], Group((moe,), 1))
    )
    rows = np.arange(12).reshape(3, 4)
    blocks = per_block(m, rows)
    assert blocks[0][0] is None
    assert blocks[0][1].tolist() == rows[:2].tolist() and blocks[1][0].tolist() == rows[2:].tolist()
    assert per_layer(blocks).tolist() == rows.tolist()


def test_what_stays_keeps_its_place_on_the_mesh():
    with tiny.on_mesh(expert=2) as mesh:
        params = tiny.params(M, mesh)
        new, cut = cut_experts(params, M, KEEP)
        for got, want in zip(
            jax.tree.leaves(new), jax.tree.leaves(sp.shapes(forward.specs(cut), mesh)), strict=True
        ):
            assert got.shape == want.shape and got.sharding == want.sharding
    tiny.equal(new, cut_experts(tiny.params(M), M, KEEP)[0])


def test_weights_in_blocks_of_integers_stay_so():
    params = jax.tree.map(lambda x: x, tiny.params(M))
    rng = np.random.default_rng(0)
    code = rng.integers(-9, 9, (2, 4, 32, 16)).astype(np.int8)
    kept = Quantised(code, rng.random((2, 4, 1, 16)).astype(np.float32), dim=-2)
    params["group0"]["block0"]["ffn"]["experts"]["up"] = kept
    new, _ = take_experts(params, M, KEEP)
    got = np.asarray(new["group0"]["block0"]["ffn"]["experts"]["up"].astype(np.float32))
    want = np.asarray(kept.astype(np.float32))
    np.testing.assert_array_equal(got, np.stack([want[0][[0, 2]], want[1][[1, 3]]]))


def test_groups_of_experts_lose_equally_many():
    m = grouped()
    params = tiny.params(m)
    swapped = ((np.array([[2, 3, 1, 0], [0, 1, 2, 3]], np.int32),),)
    new, same = permute_experts(params, m, swapped)
    sp.check(new, forward.specs(same))
    for bad in ([[0, 1], [0, 2]], [[0, 1], [2, 3]]):
        with pytest.raises(UsageError, match="2 groups of 2 experts; take as many of each"):
            cut_experts(params, m, ((np.array(bad, np.int32),),))
    with pytest.raises(UsageError, match="those of one group side by side"):
        permute_experts(params, m, ((np.array([[0, 2, 1, 3]] * 2, np.int32),),))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (((np.array([[0, 0], [1, 2]]),),), "different experts of 0 to 3"),
        (((np.array([[0, 4], [1, 2]]),),), "different experts of 0 to 3"),
        (((np.array([[0, 1]]),),), r"they must be whole numbers of shape \(2, M\)"),
        (((None, None),), r"groups of \[2\] blocks, the model has groups of \[1\]"),
    ],
)
def test_impossible_experts_are_refused(index, words):
    with pytest.raises(UsageError, match=words):
        take_experts(tiny.params(M), M, index)


def test_a_block_without_experts_is_refused():
    m = tiny.model()
    with pytest.raises(UsageError, match="ffn=Dense routes no tokens"):
        take_experts(tiny.params(m), m, ((KEEP[0][0], None),))


def test_cuts_want_rising_rows_and_relabelling_whole_ones():
    with pytest.raises(UsageError, match="must rise"):
        cut_experts(tiny.params(M), M, ((np.array([[2, 0], [1, 3]]),),))
    with pytest.raises(UsageError, match="an order of 2 experts is given for 4"):
        permute_experts(tiny.params(M), M, KEEP)


def test_no_sides_stay_none():
    assert take_sides(None, M, KEEP) is None
