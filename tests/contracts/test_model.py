"""What every block must do in a decoder: its meaning in float64, decoding, causality, packing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.model import forward as model
from tests.contracts import oracles, tiny
from tests.contracts.cases import ATTENTIONS, FFNS, each

PAIRS = [(attn, "moe") for attn in ATTENTIONS] + [("grouped", ffn) for ffn in FFNS if ffn != "moe"]
BLOCKS = pytest.mark.parametrize(("attn", "ffn"), PAIRS)
CAUSAL = [ffn for ffn in FFNS if FFNS[ffn].causal]
CAUSAL_BLOCKS = pytest.mark.parametrize(("attn", "ffn"), [pair for pair in PAIRS if pair[1] in CAUSAL])


@functools.lru_cache
def config(attn, ffn, **changes):
    return tiny.float64(tiny.model(BlockConfig(ATTENTIONS[attn], FFNS[ffn]), **changes))


@functools.lru_cache
def program(m):
    """(logits, cache); traced anew for every length and with a cache."""

    def run(params, batch, cache):
        output = model.forward(params, m, batch, cache=cache)
        return output.logits_BTV, output.cache

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


def logits(m, batch, cache=None):
    return program(m)(tiny.host_params(m), batch, cache)


def in_numpy(m, params, batch):
    """The decoder as loops; attention and experts of `oracles`."""
    h_BTD = params["embed"][batch.token_BT]
    norm = lambda x, scale: np.apply_along_axis(oracles.rms_norm, -1, x, scale, m.norm_eps)
    for layer in range(m.groups[0].repeat):
        block = m.groups[0].blocks[0]
        p = jax.tree.map(lambda w, layer=layer: w[layer], params["group0"]["block0"])
        h_BTD = h_BTD + attend(block.attn, p["attn"], norm(h_BTD, p["pre"]), batch)
        h_BTD = h_BTD + feed(block.ffn, p["ffn"], norm(h_BTD, p["post"]), batch)
    return norm(h_BTD, params["norm"]) @ params["embed" if m.tied else "unembed"].T


def attend(attn, p, x_BTD, batch):
    q_BTHA, k_BTGA, v_BTGA = (np.einsum("btd,dha->btha", x_BTD, p[name]) for name in "qkv")
    for x_BTHA in (q_BTHA, k_BTGA):
        for b, t, h in np.ndindex(x_BTHA.shape[:3]):
            x_BTHA[b, t, h] = oracles.rotate(x_BTHA[b, t, h], batch.pos_BT[b, t], attn.rope_theta)
    pos_BT, seg_BT = batch.pos_BT, batch.seg_BT
    rule = tiny.MaskRule(pos_BT, seg_BT, pos_BT, seg_BT, batch.valid_BT, attn.window)
    return np.einsum("btha,had->btd", oracles.attend(q_BTHA, k_BTGA, v_BTGA, rule), p["o"])


def feed(ffn, p, x_BTD, batch):
    if "choice" in p:
        return oracles.duo(p, x_BTD, batch.valid_BT)
    if "experts" not in p:
        return oracles.glu(p, x_BTD)
    if "slots" in p:
        return oracles.soft(p, x_BTD, batch.valid_BT)
    score_BTE = oracles.softmax(x_BTD @ p["score"]["w"])
    expert_BTK = np.argsort(-score_BTE)[..., : ffn.selector.k]
    gate_BTK = np.take_along_axis(score_BTE, expert_BTK, -1)
    gate_BTK = np.where(batch.valid_BT[..., None], gate_BTK / gate_BTK.sum(-1, keepdims=True), 0)
    return oracles.moe(p["experts"], x_BTD, expert_BTK, gate_BTK)


@BLOCKS
def test_equals_the_decoder_in_numpy(attn, ffn):
    """With a table of its own for the logits where the layer is dense."""
    tied = ffn != "dense"
    m, batch = config(attn, ffn, tied=tied), tiny.batch(0, rows=2, length=5)
    with jax.enable_x64(True):
        got_BTV = np.asarray(logits(m, batch)[0])
    assert got_BTV.dtype == np.float64
    tiny.close(got_BTV, in_numpy(m, tiny.host_params(m), batch), 1e-10)


@CAUSAL_BLOCKS
def test_decoding_equals_the_full_pass(attn, ffn):
    """A prompt of four tokens, then one at a time; the cache has room to spare."""
    m = config(attn, ffn)
    batch = tiny.document(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 6)))
    with jax.enable_x64(True):
        want_BTV = logits(m, batch)[0]
        cache, parts = model.init_cache(m, 2, 8), []
        for first, end in itertools.pairwise((0, 4, 5, 6)):
            part_BTV, cache = logits(m, jax.tree.map(lambda x, s=slice(first, end): x[:, s], batch), cache)
            parts.append(np.asarray(part_BTV))
    tiny.close(np.concatenate(parts, axis=1), want_BTV, 1e-12)


@CAUSAL_BLOCKS
def test_later_tokens_other_documents_and_absent_ones_change_nothing(attn, ffn):
    m, batch = config(attn, ffn), tiny.batch(1, rows=2, length=6)
    with jax.enable_x64(True):
        want_BTV = np.asarray(logits(m, batch)[0])
        for at in range(6):
            token_BT = batch.token_BT.copy()
            token_BT[:, at] = (token_BT[:, at] + 1) % tiny.VOCAB
            moved_BT = (
                np.abs(np.asarray(logits(m, batch.replace(token_BT=token_BT))[0]) - want_BTV).max(-1) > 1e-12
            )
            same_BT = batch.seg_BT == batch.seg_BT[:, at : at + 1]
            may_BT = same_BT & (np.arange(6) >= at) & (batch.valid_BT[:, at : at + 1] | (np.arange(6) == at))
            assert not (moved_BT & ~may_BT).any()
            assert (moved_BT[:, at] | ~batch.valid_BT[:, at]).all()


@each("ffn", CAUSAL)
def test_packed_documents_are_as_if_alone(ffn):
    m, cut = config("grouped", ffn), 2
    token_BT = np.random.default_rng(3).integers(0, tiny.VOCAB, (1, 5))
    pos_BT = np.r_[0:cut, 0 : 5 - cut][None].astype(np.int32)
    packed = tiny.document(token_BT).replace(
        pos_BT=pos_BT, seg_BT=1 + (np.arange(5)[None] >= cut).astype(np.int32)
    )
    with jax.enable_x64(True):
        together = np.asarray(logits(m, packed)[0])
        for part in (slice(0, cut), slice(cut, 5)):
            tiny.close(together[:, part], logits(m, tiny.document(token_BT[:, part]))[0], 1e-12)


def test_probes_and_sides_have_a_leading_layer_dim_per_block():
    """Two groups; what is allowed in one layer is obeyed in that layer alone."""
    dense, routed = (BlockConfig(ATTENTIONS["grouped"], FFNS[name]) for name in ("dense", "moe"))
    m = tiny.model(dense, routed, repeat=3)
    allow_LBE = np.ones((3, 1, 4), bool)
    allow_LBE[1, 0, :2] = False
    sides = ((tiny.Side(), tiny.Side(allow_BE=allow_LBE)),)
    probe = lambda out, batch: {} if out.routing is None else {"expert": out.routing.expert_BTK}
    run = lambda params, batch: model.forward(params, m, batch, sides=sides, probe=probe).probes
    ((nothing, seen),) = jax.jit(run, compiler_options=tiny.QUICK_COMPILE)(
        tiny.host_params(m), tiny.document(np.arange(12).reshape(2, 6))
    )
    assert nothing == {}
    assert seen["expert"].shape == (3, 2, 6, 2)
    assert jnp.min(seen["expert"][1]) >= 2
    assert jnp.min(seen["expert"][jnp.array([0, 2])]) < 2
