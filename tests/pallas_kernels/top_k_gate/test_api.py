"""What every implementation of the router's gate must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from moejax.routers.score.base import ACTIVATIONS
from moejax.routers.select.top_k import TopK
from pallas_kernels import top_k_gate
from pallas_kernels.top_k_gate import api
from tests.pallas_kernels import interpreters

INTERPRETED = ("tpu",)  # step by step
COMPILED = tuple(name for name in api.IMPLEMENTATIONS if name not in INTERPRETED)
implementations = pytest.mark.parametrize("implementation", api.IMPLEMENTATIONS)
interpreted_nightly = pytest.mark.parametrize(
    "implementation",
    (*COMPILED, *(pytest.param(name, marks=pytest.mark.nightly) for name in INTERPRETED)),
)
scores = pytest.mark.parametrize("score", ["softmax", "sigmoid"])


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    with interpreters.pallas_calls():
        yield


def oracle(logit_TE, k, score, prefer_TE=0.0, valid_T=None, renormalise=True):
    """(expert, gate, score) in float64, one token after the other."""
    logit_TE = np.asarray(logit_TE, np.float64)
    T, E = logit_TE.shape
    expert_TK, gate_TK, score_TE = np.full((T, k), E), np.zeros((T, k)), np.zeros((T, E))
    for t in range(T):
        if valid_T is not None and not valid_T[t]:
            continue
        power_E = np.exp(logit_TE[t] - np.max(logit_TE[t]))
        score_TE[t] = power_E / power_E.sum() if score == "softmax" else 1 / (1 + np.exp(-logit_TE[t]))
        choice_E = score_TE[t] + np.broadcast_to(prefer_TE, (T, E))[t]
        best_K = [e for e in np.argsort(-choice_E, kind="stable")[:k] if choice_E[e] > -np.inf]
        expert_TK[t, : len(best_K)], gate_TK[t, : len(best_K)] = best_K, score_TE[t][best_K]
        if renormalise and best_K:
            gate_TK[t] /= gate_TK[t].sum()
    return expert_TK, gate_TK, score_TE


@functools.cache
def gates(implementation, k, score="softmax", renormalise=True):
    how = {"score": score, "renormalise": renormalise, "implementation": implementation}
    return jax.jit(lambda logit, prefer, valid: top_k_gate(logit, k, prefer_TE=prefer, valid_T=valid, **how))


def drawn(T, E, seed=0):
    """(logits, preferences with forbidden experts, absent tokens with NaN); no two choices are close."""
    rng = np.random.default_rng(seed)
    logit_TE = rng.permuted(np.broadcast_to(np.linspace(-3, 3, E), (T, E)), axis=1)
    prefer_TE = np.where(rng.random((T, E)) < 0.3, -np.inf, 0.0)
    prefer_TE[rng.random(T) < 0.1] = -np.inf
    valid_T = rng.random(T) < 0.8
    logit_TE = np.where(valid_T[:, None], logit_TE, np.nan)
    return jnp.asarray(logit_TE, jnp.float32), jnp.asarray(prefer_TE, jnp.float32), jnp.asarray(valid_T)


def check(implementation, size, score, renormalise=True, seed=0):
    T, E, k = size
    logit_TE, prefer_TE, valid_T = drawn(T, E, seed)
    got = gates(implementation, k, score, renormalise)(logit_TE, prefer_TE, valid_T)
    wanted = oracle(logit_TE, k, score, prefer_TE, valid_T, renormalise)
    assert [x.dtype for x in got] == [jnp.int32, jnp.float32, jnp.float32]
    np.testing.assert_array_equal(got.expert_TK, wanted[0])
    for actual, expected in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=3e-6, atol=1e-7)


@implementations
def test_two_of_three_by_hand(implementation):
    """Scores 1/6, 3/6, 2/6: experts 1 and 2 with 3/5 and 2/5; of equal ones the first come first."""
    logit_TE = jnp.log(jnp.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [2.0, 3.0, 1.0]]))
    expert_TK, gate_TK, score_TE = gates(implementation, 2)(logit_TE, None, jnp.array([True, True, False]))
    np.testing.assert_array_equal(expert_TK, [[1, 2], [0, 1], [3, 3]])
    np.testing.assert_allclose(gate_TK, [[0.6, 0.4], [0.5, 0.5], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(score_TE, [[1 / 6, 0.5, 1 / 3], [1 / 3] * 3, [0] * 3], rtol=1e-6)


@implementations
def test_a_preference_moves_the_choice_and_not_the_gate(implementation):
    """Expert 0 is forbidden, expert 2 is preferred; with one expert left the second slot is empty."""
    logit_TE = jnp.log(jnp.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]))
    prefer_TE = jnp.array([[-jnp.inf, 0.0, 1.0], [-jnp.inf, 0.0, -jnp.inf]])
    expert_TK, gate_TK, _ = gates(implementation, 2)(logit_TE, prefer_TE, None)
    np.testing.assert_array_equal(expert_TK, [[2, 1], [1, 3]])
    np.testing.assert_allclose(gate_TK, [[0.4, 0.6], [1, 0]], rtol=1e-6)


@implementations
@scores
@pytest.mark.parametrize(("T", "E", "k"), [(37, 10, 3), (5, 130, 8)])
def test_equals_the_oracle(implementation, score, T, E, k):
    check(implementation, (T, E, k), score)


@interpreted_nightly
@scores
def test_without_renormalising_gates_are_scores(implementation, score):
    check(implementation, (11, 6, 2), score, renormalise=False)


@interpreted_nightly
@pytest.mark.parametrize(("T", "E", "k"), [(0, 4, 2), (9, 16, 16), (3, 512, 16), (4, 1, 1)])
def test_extreme_sizes(implementation, T, E, k):
    check(implementation, (T, E, k), "softmax")


@interpreted_nightly
@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_ties_go_to_the_lower_index(implementation, seed, values):
    """Logits of few values, and of both zeros."""
    rng = np.random.default_rng(seed)
    logit_TE = jnp.asarray(rng.choice([0.0, -0.0, 1.0, -2.0][: values + 1], (6, 9)), jnp.float32)
    expert_TK = gates(implementation, 4, "sigmoid")(logit_TE, None, None).expert_TK
    np.testing.assert_array_equal(expert_TK, jax.lax.top_k(jax.nn.sigmoid(logit_TE), 4)[1])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@implementations
@scores
@settings(max_examples=25)
@given(data=st.data())
def test_any_size(implementation, score, data):
    T, E = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 200))
    k, first = data.draw(st.integers(1, min(E, 16))), data.draw(st.integers(0, 2**31))
    for seed in range(first, first + 25):
        check(implementation, (T, E, k), score, seed=seed)


def selected(logit_TE, prefer_TE, valid_T, score):
    """(experts, gates, scores) by the parts of a model."""
    score_TE = ACTIVATIONS[score](logit_TE)
    choice_TE = score_TE + prefer_TE
    select = TopK(k=3).select
    expert_BTK, gate_BTK, _ = select({}, score_TE[None], choice_TE[None], valid_T[None], None)
    return expert_BTK[0], gate_BTK[0], score_TE


@implementations
@scores
def test_equals_the_selector_of_a_model(implementation, score):
    logit_TE, prefer_TE, valid_T = drawn(40, 9)
    logit_TE = jnp.where(valid_T[:, None], logit_TE, 0.0)
    weight_TK = jax.random.normal(jax.random.key(1), (40, 3))

    def loss(logit_TE, gate):
        expert_TK, gate_TK, score_TE = gate(logit_TE, prefer_TE, valid_T)
        seen_TE = jnp.where(valid_T[:, None], score_TE, 0)
        return jnp.sum(gate_TK * weight_TK) + jnp.sum(jnp.sin(3 * seen_TE)), (expert_TK, gate_TK)

    either = gates(implementation, 3, score), functools.partial(selected, score=score)
    run = lambda gate: jax.jit(jax.grad(functools.partial(loss, gate=gate), has_aux=True))(logit_TE)
    (slope_TE, (expert_TK, gate_TK)), (slope_wanted_TE, (expert_wanted_TK, gate_wanted_TK)) = map(run, either)
    np.testing.assert_array_equal(expert_TK, expert_wanted_TK)
    np.testing.assert_allclose(gate_TK, gate_wanted_TK, rtol=1e-6)
    np.testing.assert_allclose(slope_TE, slope_wanted_TE, rtol=1e-4, atol=1e-6)


@implementations
def test_absent_tokens_have_no_gradient(implementation):
    logit_TE, prefer_TE, valid_T = drawn(20, 8)
    run = gates(implementation, 2)
    loss = lambda logit_TE: sum(jnp.sum(jnp.sin(x)) for x in run(logit_TE, prefer_TE, valid_T)[1:])
    slope_TE = jax.grad(loss)(logit_TE)
    assert np.isfinite(slope_TE).all()
    assert not np.asarray(slope_TE)[~np.asarray(valid_T)].any()


@pytest.mark.parametrize("implementation", ["xla", pytest.param("reference", marks=pytest.mark.nightly)])
@scores
def test_first_and_second_derivatives_equal_finite_differences(implementation, score):
    with jax.enable_x64(True):
        at, step = (drawn(6, 5, seed)[0].astype(jnp.float64) for seed in range(2))
        at, step = jnp.nan_to_num(at), jnp.nan_to_num(step)
        weight_TK = jnp.arange(12.0).reshape(6, 2)

        def loss(logit_TE):
            _, gate_TK, score_TE = gates(implementation, 2, score)(logit_TE, None, None)
            return jnp.sum(weight_TK * gate_TK) + jnp.sum(jnp.sin(score_TE))

        slope = lambda logit_TE: jnp.vdot(jax.grad(loss)(logit_TE), step)
        for f in (loss, slope):
            difference = (f(at + 1e-6 * step) - f(at - 1e-6 * step)) / 2e-6
            np.testing.assert_allclose(jnp.vdot(jax.grad(f)(at), step), difference, rtol=1e-5)


@pytest.mark.parametrize("implementation", COMPILED)  # the interpreter cannot; Mosaic does
def test_vmap(implementation):
    batch = [drawn(7, 10, seed) for seed in range(3)]
    run = gates(implementation, 2)
    batched = jax.vmap(run)(*map(jnp.stack, zip(*batch, strict=True)))
    for i, one in enumerate(batch):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, [x[i] for x in batched], list(run(*one)))


@interpreted_nightly
def test_tokens_split_over_devices(implementation):
    """A preference that is the same on all devices joins tokens that are not."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    logit_TE, _, valid_T = drawn(12, 6)
    prefer_E = jnp.array([0.0, 0.5, 0.0, -jnp.inf, 0.0, 0.1])
    run = lambda logit, prefer, valid: top_k_gate(
        logit, 2, prefer_TE=prefer[None], valid_T=valid, implementation=implementation
    )
    op = jax.shard_map(
        run, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P("data"), check_vma=True
    )
    put = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, P(*axes)))
    operands = put(logit_TE, "data"), put(prefer_E), put(valid_T, "data")
    loss = lambda logit, run: jnp.sum(jnp.sin(run(logit, *operands[1:]).gate_TK))
    slope = jax.jit(jax.grad(functools.partial(loss, run=op)))(operands[0])
    whole = jax.grad(lambda logit: jnp.sum(jnp.sin(run(logit, prefer_E, valid_T).gate_TK)))(logit_TE)
    np.testing.assert_allclose(np.asarray(slope), np.asarray(whole), rtol=1e-5, atol=1e-7)


def test_gradients_are_put_in_place_by_comparison():
    loss = lambda logit_TE: jnp.sum(jnp.sin(top_k_gate(logit_TE, 2).gate_TK))
    text = jax.jit(jax.grad(loss)).lower(jnp.ones((16, 8))).compile().as_text()
    assert " scatter(" not in text


def test_what_cannot_be_is_refused():
    logit_TE = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"logits are \(4, 3\), k=4; .*1 <= k <= E"):
        top_k_gate(logit_TE, 4)
    with pytest.raises(ValueError, match="score='relu' is not one of softmax, sigmoid"):
        top_k_gate(logit_TE, 2, score="relu")
