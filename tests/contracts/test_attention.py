"""What every attention must do: its meaning in float64, the same from a cache, documents apart, causality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax import specs as sp
from moejax.seams import Memory
from tests.contracts import attention_oracles, tiny
from tests.contracts.cases import ATTENTIONS, each

M = tiny.float64(tiny.model())
EVERY = each("name", ATTENTIONS)


@functools.lru_cache
def program(name):
    """(o_BTD, cache) of one layer; jit traces it anew for every length and with a cache."""

    def run(p, x_BTD, batch, cache):
        memory = Memory(carry={}, cache=cache)
        o_BTD, mixing, memory = ATTENTIONS[name].apply(p, x_BTD, batch, memory)
        return o_BTD, mixing, memory.cache

    return jax.jit(run)


@functools.lru_cache
def params(name):
    """No vector of them as training begins it, which is zeros or ones."""
    fresh = jax.tree.map(np.asarray, sp.init(jax.random.key(0), ATTENTIONS[name].specs(M)))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda w: w + rng.standard_normal(w.shape) / 2 if w.ndim == 1 else w, fresh)


def inputs(rows, length, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, length, M.width))


@EVERY
def test_equals_attention_one_query_at_a_time(name):
    """Packed documents, absent tokens and holes; the record of the mixing says what was done."""
    with jax.enable_x64(True):
        batch = tiny.batch(0, rows=3, length=9)
        batch = batch.replace(valid_BT=batch.valid_BT & (np.random.default_rng(1).random((3, 9)) < 0.8))
        x_BTD, p = inputs(3, 9), params(name)
        o_BTD, mixing, _ = jax.tree.map(np.asarray, program(name)(p, x_BTD, batch, {}))
    want_BTD, q_BTHA = attention_oracles.attend(ATTENTIONS[name], p, x_BTD, batch)
    np.testing.assert_allclose(mixing.q_BTHA, q_BTHA, rtol=1e-10, atol=1e-12)
    assert mixing.rule.window == getattr(ATTENTIONS[name], "window", None)
    present_BT = np.asarray(batch.valid_BT)  # nobody looks at what absent tokens ask
    tiny.close(o_BTD[present_BT], want_BTD[present_BT], 1e-10)


@EVERY
def test_a_cache_gives_the_full_pass(name):
    """In chunks of several sizes, the rows out of step with one another, and one token at a time."""
    T = 7
    with jax.enable_x64(True):
        batch, x_BTD, p = tiny.document(np.zeros((2, T))), inputs(2, T), params(name)
        want_BTD = program(name)(p, x_BTD, batch, {})[0]
        for chunks in ((7,), (3, 3, 1), (1,) * 7):
            cache = {"attn": empty_cache(name, 2, T + 2)}
            start, parts = 0, []
            for size in chunks:
                cut = lambda x, start=start, size=size: x[:, start : start + size]
                o_BTD, _, cache = program(name)(p, cut(x_BTD), jax.tree.map(cut, batch), cache)
                start += size
                parts.append(np.asarray(o_BTD))
            tiny.close(np.concatenate(parts, axis=1), want_BTD, 1e-12)


def empty_cache(name, rows, length):
    return sp.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), ATTENTIONS[name].cache(M, rows, length))


@EVERY
def test_an_absent_token_is_not_cached(name):
    """Row 0 decodes while row 1 waits: its step is absent, and its next one is as if nothing had been."""
    with jax.enable_x64(True):
        p, x_BTD, batch = params(name), inputs(2, 3), tiny.document(np.zeros((2, 3)))
        want_BTD = program(name)(p, x_BTD, batch, {})[0]
        cache = {"attn": empty_cache(name, 2, 5)}
        row_1 = iter((None, 0, 1, None, 2))
        row_0 = iter((0, 1, None, 2, None))
        for at in zip(row_0, row_1, strict=True):
            here_B1 = np.array([[i is not None] for i in at])
            pos_B1 = np.array([[i or 0] for i in at], np.int32)
            x_B1D = np.where(here_B1[..., None], np.take_along_axis(x_BTD, pos_B1[..., None], 1), np.nan)
            step = tiny.document(pos_B1).replace(pos_BT=pos_B1, valid_BT=here_B1)
            o_B1D, _, cache = program(name)(p, x_B1D, step, cache)
            for b in np.flatnonzero(here_B1):
                tiny.close(o_B1D[b, 0], want_BTD[b, at[b]], 1e-12)


@EVERY
def test_packed_documents_are_as_if_alone(name):
    with jax.enable_x64(True):
        p, x_BTD = params(name), inputs(1, 8)
        cut = 3
        pos = np.r_[0:cut, 0 : 8 - cut][None].astype(np.int32)
        seg = np.r_[[1] * cut, [2] * (8 - cut)][None].astype(np.int32)
        packed = tiny.document(pos).replace(pos_BT=pos, seg_BT=seg)
        together = program(name)(p, x_BTD, packed, {})[0]
        for part in (slice(0, cut), slice(cut, 8)):
            alone = program(name)(p, x_BTD[:, part], tiny.document(pos[:, part]), {})[0]
            tiny.close(together[:, part], alone, 1e-12)


@EVERY
def test_gradients_reach_only_what_a_query_may_see(name):
    """d out[t] / d x[s] is zero for later, absent, other-document and out-of-window s, and nowhere else."""
    with jax.enable_x64(True):
        batch = tiny.batch(3, rows=1, length=7, padded=0)
        batch = batch.replace(valid_BT=np.arange(7)[None] != 1)
        x_BTD, p, ct_D = inputs(1, 7), params(name), inputs(1, 1)[0, 0]

        def reach(x_BTD):
            slope = jax.jacrev(lambda x: program(name)(p, x, batch, {})[0][0] @ ct_D)(x_BTD)
            return jnp.abs(slope[:, 0]).max(-1) > 0

        # compiled as users' programs are: without, the two equal slopes of a lone key differ by rounding
        reach_TS = np.asarray(jax.jit(reach, compiler_options={"xla_backend_optimization_level": 3})(x_BTD))
    at, seg, window = np.arange(7), batch.seg_BT[0], getattr(ATTENTIONS[name], "window", None) or 7
    back_TS = at[:, None] - at
    may_TS = (back_TS >= 0) & (back_TS < window) & (seg[:, None] == seg)
    may_TS &= batch.valid_BT[0][None] & batch.valid_BT[0][:, None]
    # x[t] also forms the query; the share of a lone key does not depend on it.
    rivals_T1 = may_TS.sum(1, keepdims=True) + ("sink" in p)
    own_TS = np.eye(7, dtype=bool) & (rivals_T1 > 1)
    np.testing.assert_array_equal(reach_TS, may_TS | own_TS)
