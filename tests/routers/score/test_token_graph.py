"""Routers over a graph of tokens: the worked example, the limits, and M R without M."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.config import MeshConfig
from moejax.errors import UsageError
from moejax.routers.score.linear import Linear
from moejax.routers.score.token_graph import AttentionAware, SimilarityAware
from moejax.seams import Mixing
from tests.contracts import oracles, tiny

E, D = 3, 8


def entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)


def drawn(seed, rows=2, length=6, dtype=np.float64):
    """(parameters, input) with packed documents and a window of three."""
    rng = np.random.default_rng(seed)
    batch = tiny.batch(seed, rows, length)
    i = tiny.route_in(rng.standard_normal((rows, length, D)).astype(dtype), batch)
    q_BTHA = rng.standard_normal((rows, length, 4, 4)).astype(dtype)
    k_BSGA = rng.standard_normal((rows, length, 2, 4)).astype(dtype)
    p = {"w": rng.standard_normal((D, E)), "similarity": 0.1 * rng.standard_normal((D, D))}
    return p, i.replace(mixing=Mixing(q_BTHA, k_BSGA, i.mixing.rule.replace(window=3)))


def maps(q_BTHA, k_BSGA, rule):
    """The attention maps of all heads, float64: one-hot values make them visible."""
    B, S, G = k_BSGA.shape[:3]
    onehot = np.broadcast_to(np.eye(S)[None, :, None], (B, S, G, S))
    return oracles.attend(q_BTHA, k_BSGA, onehot, rule).mean(2)


def test_published_similarity():
    """Scores U U^T / 0.5, causal; router 2 I."""
    u_TD = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    i = tiny.route_in(u_TD[None], tiny.document([[0, 1, 2]]))
    scorer = SimilarityAware(temperature=0.5 / 2**0.5)
    p = {"w": 2 * jnp.eye(2), "similarity": jnp.zeros((2, 2))}
    logit_BTE, score_BTE, _ = scorer.score(p, i)
    row_TE = [[0.8808, 0.1192], [0.8320, 0.1680], [0.1192, 0.8808]]
    np.testing.assert_allclose(jax.nn.softmax(logit_BTE)[0], row_TE, atol=6e-5)
    np.testing.assert_allclose(
        score_BTE[0], [[0.8808, 0.1192], [0.8584, 0.1416], [0.2890, 0.7110]], atol=6e-5
    )


def test_published_smoothing():
    """R and M by hand through the attention-aware router: queries log M, keys one-hot, scale sqrt(3)."""
    row_TE = np.array([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])
    map_TS = np.array([[1, 0, 0], [0.6, 0.4, 0], [0.5, 0.3, 0.2]])
    with jax.enable_x64(True):
        i = tiny.route_in(np.log(row_TE)[None], tiny.document([[0, 1, 2]]))
        q_TA = np.log(np.maximum(map_TS, 1e-9)) * 3**0.5
        i = i.replace(mixing=Mixing(q_TA[None, :, None], np.eye(3)[None, :, None], i.mixing.rule))
        _, score_BTE, _ = AttentionAware().score({"w": jnp.eye(3)}, i)
    want_TE = [[0.9, 0.05, 0.05], [0.7, 0.17, 0.13], [0.638, 0.196, 0.166]]
    np.testing.assert_allclose(score_BTE[0], want_TE, atol=1e-6)
    np.testing.assert_allclose(entropy(row_TE), [0.3944, 1.0805, 1.0985], atol=5e-5)
    np.testing.assert_allclose(entropy(np.asarray(score_BTE[0])), [0.3944, 0.8161, 0.9042], atol=5e-5)


@pytest.mark.parametrize("scorer", [AttentionAware(), SimilarityAware(0.5), AttentionAware(share=0.3)])
def test_equals_the_product_with_the_map(scorer):
    with jax.enable_x64(True):
        p, i = drawn(1)
        logit_BTE, score_BTE, _ = jax.jit(scorer.score)(p, i)
    np.testing.assert_allclose(logit_BTE, i.x_BTD @ p["w"], rtol=1e-12)
    row_BTE = oracles.softmax(i.x_BTD @ p["w"])
    if isinstance(scorer, SimilarityAware):
        q_BTD = (i.x_BTD + i.x_BTD @ p["similarity"]) / scorer.temperature
        map_BTS = maps(q_BTD[:, :, None], i.x_BTD[:, :, None], i.mixing.rule)
    else:
        map_BTS = maps(i.mixing.q_BTHA, i.mixing.k_BSGA, i.mixing.rule)
    want_BTE = (1 - scorer.share) * row_BTE + scorer.share * map_BTS @ row_BTE
    np.testing.assert_allclose(score_BTE, want_BTE, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scorer", [AttentionAware(share=0.0), SimilarityAware(share=0.0)])
def test_nothing_shared_is_the_linear_router(scorer):
    """Bit for bit, in value and slope."""
    p, i = drawn(2, dtype=np.float32)
    linear = {"w": p["w"].astype(np.float32)}
    value = lambda scorer: lambda w: (scorer.score(p | {"w": w}, i)[1] @ jnp.arange(3.0)).sum()
    tiny.equal(
        jax.jit(jax.value_and_grad(value(scorer)))(linear["w"]),
        jax.jit(jax.value_and_grad(value(Linear())))(linear["w"]),
    )


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("scorer", [AttentionAware(), SimilarityAware()])
def test_rows_stay_distributions_and_a_first_token_keeps_its_own(scorer, dtype):
    """In float32, whatever the activations are."""
    p, i = drawn(3, dtype=dtype)
    logit_BTE, score_BTE, _ = jax.jit(scorer.score)(jax.tree.map(np.float32, p), i)
    np.testing.assert_allclose(np.sum(score_BTE, -1)[i.batch.valid_BT], 1, atol=1e-6)
    first_BT = (i.batch.pos_BT == 0) & i.batch.valid_BT
    np.testing.assert_allclose(score_BTE[first_BT], jax.nn.softmax(logit_BTE)[first_BT], rtol=1e-6)


@pytest.mark.parametrize("scorer", [AttentionAware, SimilarityAware])
def test_the_gradient_passes_the_map_only_if_it_may(scorer):
    """Of the queries and keys; the rows of the router learn in both cases."""
    p, i = drawn(4, dtype=np.float32)
    p = jax.tree.map(np.float32, p)

    def total(p, q_BTHA, detach):
        mixing = i.mixing.replace(q_BTHA=q_BTHA)
        return (scorer(detach=detach).score(p, i.replace(mixing=mixing))[1] @ jnp.arange(3.0)).sum()

    both = lambda *at: tuple(jax.grad(total, (0, 1))(*at, detach) for detach in (False, True))
    free, cut = jax.jit(both, compiler_options=tiny.QUICK_COMPILE)(p, i.mixing.q_BTHA)
    assert np.abs(free[0]["w"]).max() > 1e-3 and np.abs(cut[0]["w"]).max() > 1e-3
    through = (lambda g: g[1]) if scorer is AttentionAware else (lambda g: g[0]["similarity"])
    assert np.abs(through(free)).max() > 1e-4
    assert not np.asarray(through(cut)).any()


@given(st.integers(0, 10**6))
def test_entropy_lies_between_its_bounds(seed):
    """sum_j M H(R_j) <= H((M R)_i) <= H(M_i) + sum_j M H(R_j); it need not fall."""
    with jax.enable_x64(True):
        p, i = drawn(seed, rows=1, length=6)
        i = i.replace(x_BTD=i.x_BTD * 3)
        score_BTE = np.asarray(AttentionAware().score(p, i)[1])
    map_BTS = maps(i.mixing.q_BTHA, i.mixing.k_BSGA, i.mixing.rule)
    low_BT = (map_BTS @ entropy(oracles.softmax(i.x_BTD @ p["w"]))[..., None])[..., 0]
    got_BT = entropy(score_BTE)
    assert (low_BT <= got_BT + 1e-9).all() and (got_BT <= entropy(map_BTS) + low_BT + 1e-9).all()


def test_tokens_that_disagree_raise_the_entropy():
    row_TE = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    mixed_TE = np.full((2, 2), 0.5) @ row_TE
    np.testing.assert_allclose(entropy(row_TE)[0], 0.3944, atol=5e-5)
    np.testing.assert_allclose(entropy(mixed_TE), 0.8570, atol=5e-5)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"scorer.share=1.5 must lie between 0 and 1"):
        AttentionAware(share=1.5)
    with pytest.raises(UsageError, match=r"scorer.temperature=0 must be positive"):
        SimilarityAware(temperature=0)
    with pytest.raises(UsageError, match=r"mesh.tensor=2 splits attention heads, but the similarity"):
        SimilarityAware().check_mesh(MeshConfig(tensor=2))
