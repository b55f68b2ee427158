"""What surgery on experts must do, whatever the router: fit the new config, and mean what it says.

Sharded, quantised and mixed models are in tests/surgery.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig
from moejax.errors import UsageError
from moejax.model import forward
from moejax.surgery.allocate.uniform import uniform
from moejax.surgery.cut.experts import cut_experts, mask_experts
from moejax.surgery.cut.permute import permute_experts
from moejax.surgery.take import take_sides
from tests.contracts import tiny
from tests.contracts.cases import BLIND, DISPATCHERS, DROPS, EXPERT_SCORES, REFUSED, SCORERS, SELECTORS, each

E, REPEAT = 6, 2
BATCH = tiny.batch(0, rows=2)
ROUTERS = {scorer: (scorer, "top_2") for scorer in SCORERS if (scorer, "top_2") not in REFUSED}
ROUTERS |= {
    "linear_identity": ("linear_identity", "sparse_mixer"),
    "linear_relu": ("linear_relu", "relu_norm_2"),
}
# Sigmoid scores of an expert depend on no other one. Six experts do not come in five groups.
ROUTERS |= {
    selector: ("linear_sigmoid", selector)
    for selector in SELECTORS
    if ("linear_sigmoid", selector) not in REFUSED and selector != "group_limited"
}
# Gates depend on experts that are not chosen, or on what other tokens choose.
DEPENDENT = {"attention_aware", "similarity_aware", "linear_relu", "entropy"}
DEPENDENT |= {name for name, (_, selector) in ROUTERS.items() if not SELECTORS[selector].causal}
OFTEN = {"linear_softmax", "linear_sqrt_softplus_bias", "pregated"}


def each_router(names):
    return each(
        "router", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.nightly) for name in names]
    )


@functools.lru_cache
def model(router, dispatch="local"):
    """Selectors over all experts have five slots of six experts."""
    scorer, selector = ROUTERS[router]
    parts = {"scorer": SCORERS[scorer], "selector": SELECTORS[selector], "dispatch": DISPATCHERS[dispatch]}
    return tiny.model(
        BlockConfig(tiny.ATTN, dataclasses.replace(tiny.MOE, num_experts=E, **parts)), repeat=REPEAT
    )


@functools.lru_cache
def params(m):
    """No two parameters are equal, so that none can be forgotten."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), tiny.host_params(m)
    )


@functools.partial(jax.jit, static_argnames="m", compiler_options=tiny.QUICK_COMPILE)
def forward_logits(params, sides, *, m):
    return forward.forward(params, m, BATCH, sides=sides).logits


def logits(params, m, sides=None):
    """Of all valid tokens; a mask of nothing is added, so that all passes of a model are one program."""
    M = m.groups[0].blocks[0].ffn.num_experts
    sides = mask_experts(m, ((np.tile(np.arange(M), (REPEAT, 1)),),), sides)
    return np.asarray(forward_logits(params, sides, m=m))[BATCH.valid_BT]


def rows(m, width, seed=0):
    """`width` experts of every layer in any order; all layers alike where routers need it."""
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(E)[:width].astype(np.int32) for _ in range(REPEAT)]
    alike = bool(m.groups[0].blocks[0].ffn.scorer.shared)
    return ((np.stack(draws[:1] * REPEAT if alike else draws),),)


def some(m, width, seed=0):
    """The same, rising."""
    ((index_LM,),) = rows(m, width, seed)
    return ((np.sort(index_LM, axis=1),),)


@each_router(ROUTERS)
def test_relabelling_changes_no_output(router):
    m = model(router)
    new, same = permute_experts(params(m), m, rows(m, E))
    sp.check(new, forward.specs(same))
    assert same == m
    tiny.close(logits(new, m), logits(params(m), m), 1e-5)


@each_router(ROUTERS)
def test_a_cut_fits_its_config_and_nothing_cut_is_nothing_changed(router):
    m = model(router)
    same, unchanged = cut_experts(params(m), m, some(m, E))
    assert unchanged == m
    tiny.equal(same, params(m))
    new, cut = cut_experts(params(m), m, some(m, E - 1))
    sp.check(new, forward.specs(cut))
    assert cut.groups[0].blocks[0].ffn.num_experts == E - 1
    gone = sp.count(forward.specs(m)) - sp.count(forward.specs(cut))
    assert gone >= REPEAT * 3 * 16 * 8, "the three matrices of an expert per layer are more"


@each_router([name for name in ROUTERS if name not in DEPENDENT])
def test_cut_is_mask(router):
    m = model(router)
    keep = some(m, E - 1)
    new, cut = cut_experts(params(m), m, keep)
    masked = logits(params(m), m, mask_experts(m, keep))
    tiny.close(logits(new, cut), masked, 1e-5)
    assert np.abs(masked - logits(params(m), m)).max() > 1e-4, "the expert that is gone made no difference"


@pytest.mark.nightly
@each("dispatch", [name for name in DISPATCHERS if name not in DROPS])
def test_cut_is_mask_through_every_dispatch(dispatch):
    m = model("linear_softmax", dispatch)
    keep = some(m, 4)
    new, cut = cut_experts(params(m), m, keep)
    sp.check(new, forward.specs(cut))
    tiny.close(logits(new, cut), logits(params(m), m, mask_experts(m, keep)), 1e-5)


def test_sides_follow_their_experts():
    """Loss-free biases, preferences and permissions are taken along."""
    m = model("linear_sigmoid")
    rng = np.random.default_rng(2)
    drawn = lambda: rng.standard_normal((REPEAT, 1, E)).astype(np.float32)
    ((side,),) = mask_experts(m, some(m, E - 1, seed=3))
    sides = ((side.replace(bias_BE=np.abs(drawn()), prefer_BE=drawn()),),)
    order, keep = rows(m, E), some(m, E - 1, seed=4)
    new, _ = permute_experts(params(m), m, order)
    tiny.close(logits(new, m, take_sides(sides, m, order)), logits(params(m), m, sides), 1e-5)
    new, cut = cut_experts(params(m), m, keep)
    masked = logits(params(m), m, mask_experts(m, keep, sides))
    tiny.close(logits(new, cut, take_sides(sides, m, keep)), masked, 1e-5)


@each("score", EXPERT_SCORES)
def test_scores_fit_the_model_and_lead_to_a_cut(score):
    m = model("linear_softmax")
    scores = EXPERT_SCORES[score].score(params(m), m, [BATCH])
    assert scores[0][0].shape == (REPEAT, E) and np.isfinite(scores[0][0]).all()
    new, cut = cut_experts(params(m), m, uniform(scores, 3))
    sp.check(new, forward.specs(cut))
    if score in BLIND:
        return
    order = rows(m, E)
    new, _ = permute_experts(params(m), m, order)
    ((after_LE,),) = EXPERT_SCORES[score].score(new, m, [BATCH])
    expected_LE = np.take_along_axis(scores[0][0], order[0][0], 1)
    np.testing.assert_allclose(after_LE, expected_LE, rtol=1e-4, atol=1e-6)


def test_fewer_experts_than_slots_are_refused():
    m = model("linear_softmax")
    one = ((np.zeros((REPEAT, 1), np.int32),),)
    for refused in (functools.partial(cut_experts, params(m)), mask_experts):
        with pytest.raises(UsageError, match="1 experts are left of 6"):
            refused(m, one)


@each("router", ["pregated", "recurrent_residual"])
def test_layers_that_share_experts_keep_the_same(router):
    m = model(router)
    keep = ((np.array([[0, 1, 2], [0, 1, 3]], np.int32),),)
    with pytest.raises(UsageError, match="must keep the same experts in the same order"):
        cut_experts(params(m), m, keep)
