"""What holds for any router over any tokens, however odd: no NaN comes out, and no row is lost.

Hypothesis draws the situation (who is there, what the tokens are, who may be chosen), the arrays follow from
its seed; every router and every number of experts is one compiled program.
"""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.model import shared
from moejax.ops.experts import gated_experts
from moejax.routers.select.top_k import TopK
from moejax.seams import Memory, Side
from tests.contracts import oracles, tiny
from tests.contracts.cases import NUM_EXPERTS as E
from tests.contracts.cases import REFUSED, SCORERS, SELECTORS

B, T, D, F = 2, 6, 8, 4
# Each scorer with one selector, and each selector with the first scorer that it accepts.
ROUTERS = [(scorer, "top_2") for scorer in SCORERS if (scorer, "top_2") not in REFUSED]
ROUTERS += [(next(s for s in SCORERS if (s, selector) not in REFUSED), selector) for selector in SELECTORS]
CASES = hypothesis.settings(max_examples=25, deadline=None, database=None)
SIZES = ((1, 1), (3, 2), (5, 5), (16, 3))  # E, K of the dispatcher alone


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a layer may meet in one call."""

    seed: int
    valid: tuple[bool, ...]  # of the B T tokens
    tokens: str  # random | equal | zero | huge
    allowed: tuple[bool, ...]  # of the experts
    hot: int | None  # an expert that every token wants


@st.composite
def situations(draw) -> Situation:
    num = B * T
    some = st.lists(st.booleans(), min_size=num, max_size=num)
    row_absent = [False] * T + [True] * T
    return Situation(
        seed=draw(st.integers(0, 2**16)),
        valid=tuple(draw(some | st.sampled_from([[True] * num, [False] * num, row_absent]))),
        tokens=draw(st.sampled_from(["random", "equal", "zero", "huge"])),
        allowed=tuple(draw(st.just([True] * E) | st.lists(st.booleans(), min_size=E, max_size=E))),
        hot=draw(st.none() | st.integers(0, E - 1)),
    )


def layer(scorer, selector):
    """(Moe, a model of one such layer)."""
    moe = Moe(E, F, SCORERS[scorer], SELECTORS[selector], Local())
    return moe, tiny.model(BlockConfig(tiny.ATTN, moe), repeat=1, width=D)


@functools.lru_cache
def program(scorer, selector):
    """One forward pass of a layer, with what it shares and carries in a model."""
    moe, m = layer(scorer, selector)

    def run(p, p_shared, i):
        found, _ = shared.prepare(p_shared, m, i.batch, None)
        i = i.replace(memory=Memory(shared.carry(m, i.batch), {}), shared=found)
        return moe.apply(p, i)[:2]

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


@functools.lru_cache
def parameters(scorer, selector):
    """(of the layer, of what layers share), about as they begin."""
    moe, m = layer(scorer, selector)
    rng = np.random.default_rng(0)

    def draw(spec):
        middle = spec.init.value if isinstance(spec.init, sp.Constant) else 0.0
        return (middle + 0.3 * rng.standard_normal(spec.shape)).astype(np.float32)

    return sp.tree_map(draw, (moe.specs(m), shared.specs(m)))


def given(situation: Situation, poison: bool):
    """What the layer sees; with `poison` the features of absent tokens are NaN."""
    rng = np.random.default_rng(situation.seed)
    valid_BT = np.reshape(situation.valid, (B, T))
    x_BTD = rng.standard_normal((B, T, D)).astype(np.float32)
    if situation.tokens == "equal":
        x_BTD = np.broadcast_to(x_BTD[:1, :1], x_BTD.shape)
    x_BTD = x_BTD * np.float32({"zero": 0, "huge": 1e4}.get(situation.tokens, 1))
    prefer_BE = np.zeros((B, E), np.float32)
    if situation.hot is not None:
        prefer_BE[:, situation.hot] = 100
    allow_BE = np.broadcast_to(np.array(situation.allowed), (B, E))
    side = Side(bias_BE=np.zeros((B, E), np.float32), prefer_BE=prefer_BE, allow_BE=allow_BE)
    batch = tiny.batch(situation.seed, B, T, padded=0).replace(valid_BT=valid_BT)
    i = tiny.route_in(x_BTD, batch, side)
    if poison:
        spoil = lambda x: np.where(valid_BT[..., None], x, np.float32("nan"))
        i = i.replace(h_BTD=spoil(i.h_BTD), pre_BTD=spoil(i.pre_BTD), x_BTD=spoil(x_BTD))
    return i


def dense(experts, x_ND, expert_NK, gate_NK):
    """The sum over slots in float64, every expert computed for every token."""
    experts = {name: np.asarray(w, np.float64) for name, w in experts.items()}
    num = len(experts["up"])
    with np.errstate(over="ignore"):  # silu of a very negative number is 0
        out_END = np.stack([oracles.glu({n: w[e] for n, w in experts.items()}, x_ND) for e in range(num)])
    y_ND = np.zeros(x_ND.shape)
    for k in range(expert_NK.shape[1]):
        e_N = expert_NK[:, k]
        row_ND = out_END[np.minimum(e_N, num - 1), np.arange(len(x_ND))]
        y_ND += np.where((e_N < num)[:, None], gate_NK[:, k, None] * row_ND, 0)
    return y_ND


@pytest.mark.parametrize(("scorer", "selector"), dict.fromkeys(ROUTERS))
@CASES
@hypothesis.given(situation=situations())
def test_no_nan_comes_out_and_no_row_is_lost(scorer, selector, situation):
    p, p_shared = parameters(scorer, selector)
    # attention maps of a model never hold the values of absent tokens apart from what is mixed
    poison = "mixing" not in SCORERS[scorer].reads
    i = given(situation, poison)
    y_BTD, routing = jax.tree.map(np.asarray, program(scorer, selector)(p, p_shared, i))
    full_BTK, valid_BT = routing.expert_BTK < E, i.batch.valid_BT
    sent_BTK = full_BTK & routing.extra.get("kept_BTK", True)  # False where a capacity dropped the choice
    assert np.isfinite(y_BTD).all() and np.isfinite(routing.gate_BTK).all()
    assert (y_BTD[~valid_BT] == 0).all() and not full_BTK[~valid_BT].any()
    np.testing.assert_array_equal(routing.kept_BTK, sent_BTK)
    flat = lambda x: x.reshape(B * T, -1)
    x_ND = np.where(flat(valid_BT), flat(i.x_BTD), 0).astype(np.float64)
    sent_NK = flat(np.where(sent_BTK, routing.expert_BTK, E))
    want_ND = dense(p["experts"], x_ND, sent_NK, flat(routing.gate_BTK))
    np.testing.assert_allclose(flat(y_BTD), want_ND, rtol=1e-4, atol=1e-5 * max(np.abs(want_ND).max(), 1e-3))
    if isinstance(SELECTORS[selector], TopK):
        slots = min(SELECTORS[selector].num_slots, sum(situation.allowed))
        np.testing.assert_array_equal(full_BTK.sum(-1), np.where(valid_BT, slots, 0))


@functools.lru_cache
def dispatched(num_experts, num_slots):
    """Output, kept slots and gradients of the dispatcher alone."""

    def run(p, x_BTD, gate_BTK, expert_BTK, ct_BTD):
        def weighted(p, x_BTD, gate_BTK):
            y_BTD, kept_BTK = Local()(gated_experts, p, x_BTD, expert_BTK, gate_BTK)
            return jnp.vdot(y_BTD, ct_BTD), (y_BTD, kept_BTK)

        return jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(p, x_BTD, gate_BTK)

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


@pytest.mark.parametrize(("num_experts", "num_slots"), SIZES)
@hypothesis.settings(CASES, max_examples=40)
@hypothesis.given(data=st.data())
def test_whatever_is_routed_arrives(num_experts, num_slots, data):
    """Any sizes of groups: experts without rows, one with all of them, nobody at all."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    used = data.draw(st.lists(st.integers(0, num_experts), min_size=1, max_size=4), label="experts in use")
    expert_BTK = rng.choice(used, (B, T, num_slots)).astype(np.int32)
    full_BTK = expert_BTK < num_experts
    gate_BTK = np.where(full_BTK, rng.standard_normal(full_BTK.shape), np.nan).astype(np.float32)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x_BTD, ct_BTD = draw(B, T, D), draw(B, T, D)
    p = {"gate": draw(num_experts, D, F), "up": draw(num_experts, D, F), "down": draw(num_experts, F, D)}
    run = dispatched(num_experts, num_slots)
    grads, (y_BTD, kept_BTK) = jax.tree.map(np.asarray, run(p, x_BTD, gate_BTK, expert_BTK, ct_BTD))
    np.testing.assert_array_equal(kept_BTK, full_BTK)
    flat = lambda x: x.reshape(B * T, -1)
    want_ND = dense(p, flat(x_BTD).astype(np.float64), flat(expert_BTK), flat(gate_BTK))
    np.testing.assert_allclose(flat(y_BTD), want_ND, rtol=1e-4, atol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    d_p, d_x_BTD, d_gate_BTK = grads
    assert (d_x_BTD[~full_BTK.any(-1)] == 0).all() and (d_gate_BTK[~full_BTK] == 0).all()
    idle_E = ~np.isin(np.arange(num_experts), expert_BTK)
    assert all((w[idle_E] == 0).all() for w in d_p.values()), "an expert without rows learnt something"
