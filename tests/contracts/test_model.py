"""What every block must do in a decoder: its meaning in float64, decoding, causality, packing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig
from moejax.model import forward as model
from tests.contracts import attention_oracles, oracles, tiny
from tests.contracts.cases import ATTENTIONS, FFNS, each

# What blocks and the ends of a model may have besides, in the combinations of released models.
OPTIONS = {
    "plus_one_sandwich": ({"post_norms": True}, {"norm": "rms_plus_one", "embed_scale": 4.0}),
    "scaled": ({"residual_scale": 0.25}, {"embed_scale": 12.0, "logit_scale": 0.5}),
    "layer_norm_bias": ({}, {"norm": "layer", "unembed_bias": True, "logit_scale": 2.0, "tied": False}),
    "after": ({"after": FFNS["dense"]}, {"unembed_bias": True}),
    "after_sandwich": (
        {"after": FFNS["dense"], "post_norms": True, "residual_scale": 0.5},
        {"norm": "layer"},
    ),
}
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
    h_BTD = params["embed"][batch.token_BT] * m.embed_scale
    norm = lambda x, p: np.apply_along_axis(oracles.NORMS[m.norm], -1, x, p, m.norm_eps)
    for layer in range(m.groups[0].repeat):
        block = m.groups[0].blocks[0]
        p = jax.tree.map(lambda w, layer=layer: w[layer], params["group0"]["block0"])
        end = lambda x, name, p=p: norm(x, p[name]) if name in p else x
        for before, name, branch, after in BRANCHES[: 2 if block.after is None else 3]:
            y_BTD = branch(getattr(block, name), p[name], norm(h_BTD, p[before]), batch)
            h_BTD = h_BTD + block.residual_scale * end(y_BTD, after)
    logits_BTV = norm(h_BTD, params["norm"]) @ params["embed" if m.tied else "unembed"].T
    return (logits_BTV + params.get("unembed_bias", 0.0)) * m.logit_scale


def attend(attn, p, x_BTD, batch):
    return attention_oracles.attend(attn, p, x_BTD, batch)[0]


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
    biases = {"down_bias": p["down_bias"]} if ffn.bias else {}
    return oracles.moe(p["experts"] | biases, x_BTD, expert_BTK, gate_BTK)


# The norm before, the part, its meaning, the norm after if there is one.
BRANCHES = (
    ("pre", "attn", attend, "attn_out"),
    ("post", "ffn", feed, "ffn_out"),
    ("pre_after", "after", feed, "after_out"),
)


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


@each("option", OPTIONS)
def test_options_equal_the_decoder_in_numpy(option):
    """Every parameter is drawn, so that none of them can be forgotten."""
    block, changes = OPTIONS[option]
    m = tiny.float64(tiny.model(BlockConfig(ATTENTIONS["grouped"], FFNS["moe"], **block), **changes))
    batch = tiny.document(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 5)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w + 0.3 * rng.standard_normal(w.shape), tiny.host_params(m))
    with jax.enable_x64(True):
        got_BTV = program(m)(params, batch, None)[0]
    tiny.close(np.asarray(got_BTV), in_numpy(m, params, batch), 1e-10)


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
