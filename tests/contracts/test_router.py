"""What every router (a scorer times a selector) must do, on sixteen random inputs each."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.ffn.moe import adjust
from moejax.seams import MaskRule, Side
from tests.contracts import tiny
from tests.contracts.cases import NUM_EXPERTS as E
from tests.contracts.cases import SCORERS, SELECTORS

B, T, D = 2, 6, 8
DRAWS = 16
ROUTERS = pytest.mark.parametrize(("scorer", "selector"), tuple(itertools.product(SCORERS, SELECTORS)))


def specs(scorer, selector):
    m = tiny.model(width=D)
    return {"score": SCORERS[scorer].specs(m, E), "select": SELECTORS[selector].specs(m, E)}


def run(scorer, selector, p, i):
    """(expert_BTK, gate_BTK) of one layer."""
    _, score_BTE, _ = SCORERS[scorer].score(p["score"], i)
    score_BTE, choice_BTE = adjust(score_BTE, i.side)
    return SELECTORS[selector].select(p["select"], score_BTE, choice_BTE, i.batch.valid_BT, i.key)[:2]


@functools.lru_cache
def router(scorer, selector):
    """One compiled program for all draws."""
    return jax.jit(functools.partial(run, scorer, selector))


def draw(scorer, selector, seed):
    """Parameters and an input; seeds go through flat to saturated scores, few to all experts allowed."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    p = jax.tree.map(np.asarray, sp.init(jax.random.key(seed), specs(scorer, selector)))
    batch = tiny.batch(seed, B, T, padded=0)
    batch = batch.replace(valid_BT=rng.random((B, T)) < (1.0, 0.0, 0.9, 0.5)[seed % 4])
    bias_BE = np.abs(normal(1, E)) * np.float32((0.0, 0.1)[seed % 2])
    allow_BE = rng.random((B, E)) < (0.2, 0.7, 1.0)[seed // 3 % 3]
    side = Side(bias_BE=bias_BE, prefer_BE=0.1 * normal(B, E), allow_BE=allow_BE)
    return p, tiny.route_in(normal(B, T, D) * np.float32((0.1, 1.0, 60.0)[seed % 3]), batch, side)


def draws(scorer, selector):
    return (draw(scorer, selector, seed) for seed in range(DRAWS))


@ROUTERS
def test_experts_and_gates_are_in_order(scorer, selector):
    for p, i in draws(scorer, selector):
        expert_BTK, gate_BTK = jax.tree.map(np.asarray, router(scorer, selector)(p, i))
        chex.assert_shape((expert_BTK, gate_BTK), (B, T, SELECTORS[selector].num_slots))
        assert expert_BTK.min() >= 0 and expert_BTK.max() <= E
        assert np.issubdtype(expert_BTK.dtype, np.integer) and gate_BTK.dtype == np.float32
        full_BTK = expert_BTK < E
        assert not full_BTK[~i.batch.valid_BT].any(), "an absent token was routed"
        assert (gate_BTK[~full_BTK] == 0).all(), "an empty slot has a gate"
        assert np.isfinite(gate_BTK).all()
        times_BTE = (expert_BTK[..., None] == np.arange(E)).sum(2)
        assert times_BTE.max() <= 1, "an expert was chosen twice"
        assert not (times_BTE.astype(bool) & ~i.side.allow_BE[:, None]).any(), (
            "a disallowed expert was chosen"
        )


@ROUTERS
def test_eager_is_jit(scorer, selector):
    p, i = draw(scorer, selector, 3)
    compiled = router(scorer, selector)(p, i)
    eager = run(scorer, selector, *jax.tree.map(jnp.asarray, (p, i)))
    np.testing.assert_array_equal(eager[0], compiled[0])
    np.testing.assert_allclose(eager[1], compiled[1], rtol=1e-6)


@functools.lru_cache
def slopes(scorer, selector):
    def weighted(p, x_BTD, i, ct_BTK):
        return jnp.vdot(run(scorer, selector, p, i.replace(x_BTD=x_BTD))[1], ct_BTK)

    return jax.jit(jax.grad(weighted, argnums=(0, 1)))


@ROUTERS
def test_gradients_are_finite(scorer, selector):
    for p, i in draws(scorer, selector):
        ct_BTK = np.random.default_rng(1).standard_normal((B, T, SELECTORS[selector].num_slots), np.float32)
        dp, dx_BTD = slopes(scorer, selector)(p, i.x_BTD, i, ct_BTK)
        chex.assert_tree_all_finite((dp, dx_BTD))
        assert (np.asarray(dx_BTD)[~i.batch.valid_BT] == 0).all(), "an absent token has a gradient"


def poisoned(i, reads):
    """The input with NaN, and other ids, in every field that the scorer does not read."""
    nan = lambda tree: jax.tree.map(lambda x: np.full_like(x, np.nan), tree)
    other = lambda x_BT: np.where(x_BT > 0, 0, 7).astype(x_BT.dtype)
    changes = {name: nan(getattr(i, name)) for name in ("h_BTD", "pre_BTD", "x_BTD")}
    blank = MaskRule(*(np.zeros_like(x) for x in jax.tree.leaves(i.mixing.rule)))
    changes["mixing"] = nan(i.mixing.replace(rule=())).replace(rule=blank)
    ids = {name: other(getattr(i.batch, name)) for name in ("token_BT", "pos_BT", "seg_BT", "target_BT")}
    changes["batch"] = i.batch.replace(**ids, weight_BT=nan(i.batch.weight_BT))
    return i.replace(**{name: value for name, value in changes.items() if name not in reads})


@ROUTERS
def test_only_declared_fields_are_read(scorer, selector):
    for p, i in draws(scorer, selector):
        tiny.equal(
            router(scorer, selector)(p, poisoned(i, SCORERS[scorer].reads)), router(scorer, selector)(p, i)
        )


@ROUTERS
def test_relabelled_experts_are_chosen_alike(scorer, selector):
    """New expert e is old expert order[e]: the same slots hold the new names."""
    for seed, (p, i) in enumerate(draws(scorer, selector)):
        order_E = np.random.default_rng(seed).permutation(E)
        new_name_E = np.append(np.argsort(order_E), E)

        def relabel(x, order_E=order_E):
            for axis in (axis for axis, size in enumerate(x.shape) if size == E):
                x = np.take(x, order_E, axis)
            return x

        expert_BTK, gate_BTK = router(scorer, selector)(p, i)
        p, side = jax.tree.map(relabel, (p, i.side))
        new_expert_BTK, new_gate_BTK = router(scorer, selector)(p, i.replace(side=side))
        if _tied(scorer, p, i):
            continue
        np.testing.assert_array_equal(new_expert_BTK, new_name_E[expert_BTK])
        np.testing.assert_allclose(new_gate_BTK, gate_BTK, rtol=1e-5, atol=1e-7)


def _tied(scorer, p, i):
    """Whether two experts are wanted equally, as saturated scores are."""
    _, score_BTE, _ = SCORERS[scorer].score(p["score"], i)
    choice_BTE = np.sort(np.asarray(adjust(score_BTE, i.side)[1]), axis=-1)
    return (np.diff(np.where(np.isfinite(choice_BTE), choice_BTE, np.arange(E) - 9.0)) < 1e-6).any()


@ROUTERS
def test_later_tokens_change_nothing(scorer, selector):
    if not SELECTORS[selector].causal:
        pytest.skip("declared as not causal")
    for seed, (p, i) in enumerate(draws(scorer, selector)):
        stop = 1 + seed % (T - 1)
        later = draw(scorer, selector, seed + 100)[1]
        mixed = jax.tree.map(
            lambda now, then, stop=stop: np.concatenate([now[:, :stop], then[:, stop:]], axis=1),
            i.replace(side=None),
            later.replace(side=None),
        ).replace(side=i.side)
        first = lambda out, stop=stop: jax.tree.map(lambda x: x[:, :stop], out)
        tiny.equal(first(router(scorer, selector)(p, mixed)), first(router(scorer, selector)(p, i)))
