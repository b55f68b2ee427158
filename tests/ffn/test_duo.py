"""Two modules side by side: by hand, as data, drawn, learned, and searched."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.analysis.route_oracle import route_table, search_greedy, search_parallel
from moejax.config import BlockConfig, Group, MeshConfig
from moejax.dispatch.adaptive import Adaptive
from moejax.dispatch.local import Local
from moejax.errors import UsageError
from moejax.ffn import duo as duo_file
from moejax.ffn.dense import Dense
from moejax.ffn.duo import BIG, SKIP, SMALL, Drawn, Duo, Learned, route_sides
from moejax.model import forward as model
from moejax.seams import Side
from tests.contracts import oracles, tiny

DUO = Duo(4, 12, Drawn(big=0.25, skip=0.125), Local())
ROUTER = dataclasses.replace(DUO, choice=Learned(skip=True))
M = tiny.float64(tiny.model(BlockConfig(tiny.ATTN, DUO), width=16))
L = M.num_layers
quick_jit = functools.partial(jax.jit, compiler_options=tiny.QUICK_COMPILE)


@functools.lru_cache
def program(duo):
    return quick_jit(lambda p, i: duo.apply(p, i)[:2])


def layer(duo, key=None, side=None, T=6, scale=1.0):
    """(parameters, batch, input, output, Routing) of one layer; use within `jax.enable_x64()`."""
    p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), duo.specs(M)))
    batch = tiny.batch(0, rows=2, length=T)
    x_BTD = scale * np.random.default_rng(1).standard_normal((2, T, M.width))
    i = tiny.route_in(x_BTD, batch, side).replace(key=key)
    return p, batch, x_BTD, *jax.tree.map(np.asarray, program(duo)(p, i))


def modules(p, x_BTD):
    """What small, big and skip give every token, [B, T, 3, D]."""
    both = [oracles.glu({name: w[0] for name, w in p[part].items()}, x_BTD) for part in ("small", "big")]
    return np.stack([*both, np.zeros_like(x_BTD)], axis=2)


@functools.cache
def routed():
    """Logits under routes that are data: one program for all."""
    run = lambda params, batch, route_LBT: (
        model.forward(params, M, batch, sides=route_sides(M, route_LBT)).logits_BTV
    )
    return quick_jit(run)


def test_parameters_of_the_paper():
    """12 layers of width 2560, small 640 and big 10240 wide: 58.98M and 943.7M."""
    m = dataclasses.replace(tiny.model(width=2560), groups=(Group((BlockConfig(tiny.ATTN, DUO),), 12),))
    specs = Duo(640, 10240, Drawn(), Local()).specs(m)
    assert [12 * sp.count(specs[name]) / 1e6 for name in ("small", "big")] == pytest.approx(
        [58.98, 943.7], abs=0.02
    )


def test_every_token_passes_the_module_that_was_drawn_for_it():
    with jax.enable_x64(True):
        p, batch, x_BTD, y_BTD, routing = layer(DUO, jax.random.key(0))
    chosen_BT = np.where(routing.expert_BTK.min(-1) == 2, SKIP, np.argmax(routing.gate_BTK, axis=-1))
    chosen_BT[~batch.valid_BT] = SKIP
    want_BTD = np.take_along_axis(modules(p, x_BTD), chosen_BT[..., None, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(routing.kept_BTK, routing.expert_BTK < 2)
    np.testing.assert_allclose(
        routing.score_BTE, np.broadcast_to([0.625, 0.25], routing.score_BTE.shape), rtol=1e-6
    )


def test_draws_differ_between_tokens_and_keys_and_have_the_given_shares():
    share = []
    with jax.enable_x64(True):
        for seed in range(2):
            *_, batch, _, _, routing = layer(DUO, jax.random.key(seed), T=200)
            share.append(routing.gate_BTK[batch.valid_BT])
    assert np.any(share[0] != share[1])
    both_NE = np.concatenate(share)
    assert set(map(tuple, both_NE)) == {(0, 0), (0, 1), (1, 0)}
    np.testing.assert_allclose(both_NE.mean(axis=0), [0.625, 0.25], atol=0.07)  # 3 standard deviations


def test_without_a_key_and_without_a_route_all_tokens_pass_the_big_module():
    with jax.enable_x64(True):
        p, batch, x_BTD, y_BTD, _ = layer(DUO)
    want_BTD = np.where(batch.valid_BT[..., None], modules(p, x_BTD)[:, :, BIG], 0)
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("key", [None, 7])
def test_a_route_is_obeyed_even_where_it_would_never_be_drawn(key):
    duo = dataclasses.replace(DUO, choice=Drawn(big=0.0))
    allow_BTE = np.zeros((2, 6, 2), bool)
    allow_BTE[0, :3, SMALL] = allow_BTE[0, 3:, BIG] = True  # the second row skips
    with jax.enable_x64(True):
        key = None if key is None else jax.random.key(key)
        p, batch, x_BTD, y_BTD, _ = layer(duo, key, Side(allow_BE=allow_BTE))
    each_BTCD = modules(p, x_BTD)
    want_BTD = np.concatenate([each_BTCD[:, :3, SMALL], each_BTCD[:, 3:, BIG]], axis=1)
    want_BTD = np.where(batch.valid_BT[..., None], want_BTD, 0) * np.array([1.0, 0.0])[:, None, None]
    np.testing.assert_allclose(y_BTD, want_BTD, rtol=1e-10, atol=1e-14)


def test_a_router_mixes_in_training_and_chooses_in_evaluation():
    with jax.enable_x64(True):
        p, batch, x_BTD, mixed_BTD, routing = layer(ROUTER, jax.random.key(0))
        *_, hard_BTD, _ = layer(ROUTER)
    share_BTM = oracles.softmax(x_BTD @ p["choice"]["w"])
    valid_BT11 = batch.valid_BT[..., None, None]
    each_BTMD = np.where(valid_BT11, modules(p, x_BTD), 0)
    np.testing.assert_allclose(
        mixed_BTD, np.sum(share_BTM[..., None] * each_BTMD, axis=2), rtol=1e-10, atol=1e-14
    )
    best_BT = np.argmax(share_BTM, axis=-1)
    want_BTD = np.take_along_axis(each_BTMD, best_BT[..., None, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(hard_BTD, want_BTD, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(routing.score_BTE, share_BTM[..., :2], rtol=1e-10)


def test_a_sharp_mixture_is_the_choice():
    sharp = dataclasses.replace(ROUTER, choice=Learned(beta=1e4, skip=True))
    with jax.enable_x64(True):
        mixed_BTD, hard_BTD = (layer(sharp, key)[3] for key in (jax.random.key(0), None))
    np.testing.assert_allclose(mixed_BTD, hard_BTD, rtol=1e-8, atol=1e-12)


def test_beta_by_hand():
    """Logits (1, 0): beta 1 gives .7311, beta 1/10 .5250, beta 10 1; the paper's e^h / tau gives .7311."""
    i = tiny.route_in(np.ones((1, 1, 1), np.float32), tiny.document([[0]])).replace(key=jax.random.key(0))
    allow_BTM = np.array([[[True, True, False]]])
    for beta, want in ((1.0, 0.7311), (0.1, 0.5250), (10.0, 1.0)):
        _, share_BTM, _ = Learned(beta).weigh({"w": jnp.array([[1.0, 0.0]])}, i, allow_BTM)
        np.testing.assert_allclose(share_BTM[0, 0], [want, 1 - want, 0], atol=6e-5)


@pytest.mark.parametrize(("module", "name", "width"), [(SMALL, "small", 4), (BIG, "big", 12)])
def test_one_module_everywhere_is_the_dense_model(module, name, width):
    batch, params = tiny.batch(0, rows=2, length=5), tiny.host_params(M)
    dense = tiny.float64(tiny.model(BlockConfig(tiny.ATTN, Dense(width)), width=16))
    block = params["group0"]["block0"]
    ffn = {key: w[:, 0] for key, w in block["ffn"][name].items()}
    own = {**params, "group0": {"block0": {**block, "ffn": ffn}}}
    with jax.enable_x64(True):
        got_BTV = routed()(params, batch, np.full((L, 1, 1), module))
        want_BTV = quick_jit(lambda params, batch: model.forward(params, dense, batch).logits_BTV)(own, batch)
        tiny.close(np.asarray(got_BTV)[batch.valid_BT], np.asarray(want_BTV)[batch.valid_BT], 1e-12)


def test_the_route_of_a_token_leaves_earlier_tokens_alone():
    batch, params = tiny.document(np.arange(10).reshape(2, 5)), tiny.host_params(M)
    route_LBT = np.random.default_rng(0).integers(0, 3, (L, 2, 5))
    other_LBT = route_LBT.copy()
    other_LBT[:, 0, 2] = (other_LBT[:, 0, 2] + 1) % 3
    with jax.enable_x64(True):
        one, other = (np.asarray(routed()(params, batch, route)) for route in (route_LBT, other_LBT))
    moved_BT = np.abs(one - other).max(-1) > 1e-12
    np.testing.assert_array_equal(moved_BT, [[False, False, True, True, True], [False] * 5])


def test_routes_find_the_layers_of_several_groups():
    """Order of passing: group by group, layer by layer, block by block; blocks of another kind have none."""
    duo, dense = BlockConfig(tiny.ATTN, DUO), BlockConfig(tiny.ATTN, Dense(4))
    m = dataclasses.replace(M, groups=(Group((duo, dense, duo), 2), Group((duo,), 1)))
    (first, none, third), (last,) = route_sides(m, np.array([0, 1, 2, 0, 1])[:, None, None])
    assert none == Side()
    np.testing.assert_array_equal(first.allow_BE[:, 0, 0], [[True, False], [False, False]])
    np.testing.assert_array_equal(third.allow_BE[:, 0, 0], [[False, True], [True, False]])
    np.testing.assert_array_equal(last.allow_BE[:, 0, 0], [[False, True]])


@functools.cache
def searches():
    """The model's functions for the oracle, compiled."""
    names = ("losses_of_routes", "try_routes", "pass_route")
    return {name: quick_jit(functools.partial(getattr(duo_file, name), m=M)) for name in names}


def test_both_readings_of_the_oracle():
    """Whole sequences, and position by position; with one allowed route both are the plain forward pass."""
    token_BT = np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 4), np.int32)
    batch = tiny.document(token_BT[:, :3]).replace(target_BT=token_BT[:, 1:])
    params, table = tiny.host_params(M), route_table(L, options=3)
    with jax.enable_x64(True):
        whole = search_parallel(
            lambda route_RL: searches()["losses_of_routes"](params, batch=batch, route_RL=route_RL),
            table,
            np.ones((2, 3)),
            chunk=len(table),
        )
        first_RB = greedy(params, batch, [table])[1]
        alone = {tuple(route): greedy(params, batch, [route[None]] * 3)[1].T for route in table[[1, 5]]}
        logits_BTV = np.asarray(routed()(params, batch, np.broadcast_to(table[5][:, None, None], (L, 1, 1))))
    want_BT = -np.log(np.take_along_axis(oracles.softmax(logits_BTV), batch.target_BT[..., None], -1))[..., 0]
    assert whole.mean_R[5] == pytest.approx(want_BT.mean(), rel=1e-6)
    np.testing.assert_allclose(alone[tuple(table[5])], want_BT, rtol=1e-6)
    assert alone[tuple(table[1])].mean() == pytest.approx(whole.mean_R[1], rel=1e-6)
    np.testing.assert_allclose(first_RB[0], whole.loss_CBT.min(axis=0)[:, 0], rtol=1e-6)


def greedy(params, batch, tables):
    column = lambda t: jax.tree.map(lambda x: x[:, t : t + 1], batch)

    def tried(cache, t, route_RL):
        return searches()["try_routes"](params, batch=column(t), cache=cache, route_RL=route_RL)

    def passed(cache, t, route_LB):
        return searches()["pass_route"](params, batch=column(t), cache=cache, route_LB=route_LB)

    return search_greedy(tried, passed, model.init_cache(M, 2, 4), tables)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"ffn.small=5 must lie between 1 and ffn.big=4"):
        Duo(5, 4, Drawn(), Local())
    with pytest.raises(UsageError, match=r"ffn.dispatch=Adaptive spreads many experts over a mesh"):
        Duo(4, 8, Drawn(), Adaptive())
    with pytest.raises(UsageError, match=r"choice.big=0.7 and choice.skip=0.4"):
        Drawn(0.7, 0.4)
    with pytest.raises(UsageError, match=r"choice.beta=0"):
        Learned(beta=0)
    with pytest.raises(UsageError, match=r"ffn.small=4 is not divisible by mesh.tensor=3"):
        DUO.check_mesh(MeshConfig(tensor=3))
