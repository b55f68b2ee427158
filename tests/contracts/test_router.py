"""What every router (a scorer times a selector) must do, on sixteen random inputs each.

A pair is tested with the programs of its two parts, each compiled once for all pairs.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn.moe import Moe, adjust
from moejax.seams import MaskRule, Memory, Mixing, Side
from moejax.specs import Constant
from tests.contracts import tiny
from tests.contracts.cases import NUM_EXPERTS as E
from tests.contracts.cases import REFUSED, SCORERS, SELECTORS, each

B, T, D = 2, 6, 8
DRAWS = 16
M = tiny.model(width=D)
PAIRS = tuple(pair for pair in itertools.product(SCORERS, SELECTORS) if pair not in REFUSED)
CAUSAL = tuple(pair for pair in PAIRS if SELECTORS[pair[1]].causal)
ROUTERS = pytest.mark.parametrize(("scorer", "selector"), PAIRS)
CAUSAL_ROUTERS = pytest.mark.parametrize(("scorer", "selector"), CAUSAL)


def score(scorer, p, i):
    """(scores, what the choice is made by) of one layer, with the part that layers share."""
    row = SCORERS[scorer]
    if row.shared:
        i = i.replace(shared={row.shared: row.prepare(p["shared"], M, i.batch, None)[0]})
    _, score_BTE, _ = row.score(p["own"], i)
    return adjust(score_BTE, i.side)


def select(selector, p, score_BTE, choice_BTE, valid_BT):
    return SELECTORS[selector].select(p, score_BTE, choice_BTE, valid_BT, None)[:2]


@functools.lru_cache
def scored(scorer):
    return jax.jit(functools.partial(score, scorer), compiler_options=tiny.QUICK_COMPILE)


@functools.lru_cache
def selected(selector):
    return jax.jit(functools.partial(select, selector), compiler_options=tiny.QUICK_COMPILE)


def route(scorer, selector, p, i):
    """(expert_BTK, gate_BTK) by the compiled parts."""
    return selected(selector)(p["select"], *scored(scorer)(p["score"], i), i.batch.valid_BT)


def drawn(specs, seed):
    """Parameters about as they begin, but no two of them equal."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        middle = spec.init.value if isinstance(spec.init, Constant) else 0.0
        return (middle + 0.3 * rng.standard_normal(spec.shape)).astype(np.float32)

    return sp.tree_map(draw, specs)


@functools.lru_cache(maxsize=64)
def scorer_draw(scorer, seed, layout=None):
    """Parameters and an input; seeds go through flat to saturated scores, few to all experts allowed.

    Args:
      layout: seed of where documents begin and which tokens are there.
    """
    row, layout, rng = SCORERS[scorer], seed if layout is None else layout, np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    scale = np.float32((0.1, 1.0, 60.0)[seed % 3])
    valid_BT = np.random.default_rng(layout).random((B, T)) < (1.0, 0.0, 0.9, 0.5)[layout % 4]
    token_BT = rng.integers(0, tiny.VOCAB, (B, T), dtype=np.int32)
    batch = tiny.batch(layout, B, T, padded=0).replace(valid_BT=valid_BT, token_BT=token_BT)
    bias_BE = np.abs(normal(1, E)) * np.float32((0.0, 0.1)[seed % 2])
    allow_BE = rng.random((B, E)) < (0.2, 0.7, 1.0)[seed // 3 % 3]
    side = Side(bias_BE=bias_BE, prefer_BE=0.1 * normal(B, E), allow_BE=allow_BE)
    i = tiny.route_in(normal(B, T, D) * scale, batch, side)
    mixing = Mixing(normal(B, T, 2, 4) * scale, normal(B, T, 1, 4), i.mixing.rule)
    carry = {name: normal(B, T, *spec.shape) for name, spec in row.carry_specs(M, E).items()}
    i = i.replace(h_BTD=normal(B, T, D) * scale, mixing=mixing, memory=Memory(carry, {}))
    return drawn({"own": row.specs(M, E), "shared": row.shared_specs(M, E)}, seed), i


def draw(scorer, selector, seed):
    p, i = scorer_draw(scorer, seed)
    return {"score": p, "select": drawn(SELECTORS[selector].specs(M, E), seed)}, i


def draws(scorer, selector):
    return (draw(scorer, selector, seed) for seed in range(DRAWS))


@ROUTERS
def test_experts_and_gates_are_in_order(scorer, selector):
    for p, i in draws(scorer, selector):
        expert_BTK, gate_BTK = jax.tree.map(np.asarray, route(scorer, selector, p, i))
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


@each("pair", REFUSED)
def test_refused_pairs_say_why(pair):
    scorer, selector = pair
    with pytest.raises(UsageError, match=REFUSED[pair]):
        Moe(E, 8, SCORERS[scorer], SELECTORS[selector], Local())


@each("scorer", SCORERS)
def test_scoring_eager_is_jit(scorer):
    p, i = scorer_draw(scorer, 3)
    eager = score(scorer, *jax.tree.map(jnp.asarray, (p, i)))
    tiny.close(eager[0], scored(scorer)(p, i)[0], 1e-6)


@each("selector", SELECTORS)
def test_selecting_eager_is_jit(selector):
    p, i = draw("linear_softmax", selector, 3)
    score_BTE, choice_BTE = scored("linear_softmax")(p["score"], i)
    compiled = selected(selector)(p["select"], score_BTE, choice_BTE, i.batch.valid_BT)
    eager = select(
        selector, *jax.tree.map(jnp.asarray, (p["select"], score_BTE, choice_BTE, i.batch.valid_BT))
    )
    np.testing.assert_array_equal(eager[0], compiled[0])
    np.testing.assert_allclose(eager[1], compiled[1], rtol=1e-6)


@functools.lru_cache
def scorer_slopes(scorer):
    def weighted(p, seen, i, ct):
        return sum(map(jnp.vdot, _finite(score(scorer, p, i.replace(**seen))), ct))

    return jax.jit(jax.grad(weighted, argnums=(0, 1)), compiler_options=tiny.QUICK_COMPILE)


def _finite(scores):
    """A disallowed expert's choice is -inf, which nothing may be multiplied by."""
    return tuple(jnp.where(jnp.isfinite(x), x, 0.0) for x in scores)


@functools.lru_cache
def selector_slopes(selector):
    def weighted(p, score_BTE, choice_BTE, valid_BT, ct_BTK):
        return jnp.vdot(select(selector, p, score_BTE, choice_BTE, valid_BT)[1], ct_BTK)

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)), compiler_options=tiny.QUICK_COMPILE)


@ROUTERS
def test_gradients_are_finite(scorer, selector):
    """The chain rule by hand: slopes of the gates in the scores, then of the scores in the input."""
    for p, i in draws(scorer, selector):
        valid_BT = i.batch.valid_BT
        ct_BTK = np.random.default_rng(1).standard_normal((B, T, SELECTORS[selector].num_slots), np.float32)
        score_BTE, choice_BTE = scored(scorer)(p["score"], i)
        dp_select, *d_scores = selector_slopes(selector)(p["select"], score_BTE, choice_BTE, valid_BT, ct_BTK)
        seen = {name: getattr(i, name) for name in ("h_BTD", "pre_BTD", "x_BTD", "memory")}
        dp_score, d_seen = scorer_slopes(scorer)(p["score"], seen, i, tuple(d_scores))
        chex.assert_tree_all_finite((dp_select, d_scores, dp_score, d_seen))
        for d in jax.tree.leaves(d_seen):
            assert (np.asarray(d)[~valid_BT] == 0).all(), "an absent token has a gradient"


def poisoned(i, reads):
    """The input with NaN, and other ids, in every field that the scorer does not read."""
    nan = lambda tree: jax.tree.map(lambda x: np.full_like(x, np.nan), tree)
    other = lambda x_BT: np.where(x_BT > 0, 0, 7).astype(x_BT.dtype)
    changes = {name: nan(getattr(i, name)) for name in ("h_BTD", "pre_BTD", "x_BTD", "memory")}
    blank = MaskRule(*(np.zeros_like(x) for x in jax.tree.leaves(i.mixing.rule)))
    changes["mixing"] = nan(i.mixing.replace(rule=())).replace(rule=blank)
    ids = {name: other(getattr(i.batch, name)) for name in ("token_BT", "pos_BT", "seg_BT", "target_BT")}
    changes["batch"] = i.batch.replace(**ids, weight_BT=nan(i.batch.weight_BT))
    return i.replace(**{name: value for name, value in changes.items() if name not in reads})


@each("scorer", SCORERS)
def test_only_declared_fields_are_read(scorer):
    """A selector sees nothing but scores, so this is a matter of scorers."""
    reads = SCORERS[scorer].reads
    assert "shared" in reads or not SCORERS[scorer].shared
    for seed in range(DRAWS):
        p, i = scorer_draw(scorer, seed)
        tiny.equal(scored(scorer)(p, poisoned(i, reads)), scored(scorer)(p, i))


def relabelled(tree, order_E):
    """Every axis as long as the experts in a new order."""

    def one(x):
        for axis in (axis for axis, size in enumerate(x.shape) if size == E):
            x = np.take(x, order_E, axis)
        return x

    return jax.tree.map(one, tree)


@each("scorer", SCORERS)
def test_relabelled_experts_are_scored_alike(scorer):
    for seed in range(DRAWS):
        order_E = np.random.default_rng(seed).permutation(E)
        p, i = scorer_draw(scorer, seed)
        new_i = i.replace(side=relabelled(i.side, order_E), memory=relabelled(i.memory, order_E))
        got = scored(scorer)(relabelled(p, order_E), new_i)
        want = relabelled(jax.tree.map(np.asarray, scored(scorer)(p, i)), order_E)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@ROUTERS
def test_relabelled_experts_are_chosen_alike(scorer, selector):
    """New expert e is old expert order[e]: the same slots hold the new names."""
    for seed, (p, i) in enumerate(draws(scorer, selector)):
        order_E = np.random.default_rng(seed).permutation(E)
        new_name_E = np.append(np.argsort(order_E), E)
        scores = jax.tree.map(np.asarray, scored(scorer)(p["score"], i))
        if _tied(scores[1]):
            continue
        expert_BTK, gate_BTK = selected(selector)(p["select"], *scores, i.batch.valid_BT)
        p, scores = relabelled((p["select"], scores), order_E)
        new_expert_BTK, new_gate_BTK = selected(selector)(p, *scores, i.batch.valid_BT)
        np.testing.assert_array_equal(new_expert_BTK, new_name_E[expert_BTK])
        np.testing.assert_allclose(new_gate_BTK, gate_BTK, rtol=1e-5, atol=1e-7)


def _tied(choice_BTE):
    """Whether a token wants two experts equally, as saturated scores do; who is first then decides."""
    choice_BTE = np.sort(np.where(np.isfinite(choice_BTE), choice_BTE, np.arange(E) - 9.0), axis=-1)
    return (np.diff(choice_BTE) == 0).any()


@CAUSAL_ROUTERS
def test_later_tokens_change_nothing(scorer, selector):
    for seed, (p, i) in enumerate(draws(scorer, selector)):
        stop = 1 + seed % (T - 1)
        mixed = with_later(i, scorer_draw(scorer, seed + 100, layout=seed)[1], stop)
        first = lambda out, stop=stop: jax.tree.map(lambda x: x[:, :stop], out)
        tiny.equal(first(route(scorer, selector, p, mixed)), first(route(scorer, selector, p, i)))


def with_later(i, later, stop):
    """`i` up to position `stop`, then `later`; what is not per token stays."""
    per_token = ("h_BTD", "pre_BTD", "x_BTD", "mixing", "batch", "memory")
    mix = lambda now, then: np.concatenate([now[:, :stop], then[:, stop:]], axis=1)
    parts = {name: jax.tree.map(mix, getattr(i, name), getattr(later, name)) for name in per_token}
    return i.replace(**parts)
