"""BlockFFN's losses and controller by hand, and chunks against loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import UsageError
from moejax.losses.locality import EPS, ActivationLocality, ChunkSparsity, begin_chunk, sum_since
from moejax.seams import Batch, BlockOut
from tests.losses import seen

A0 = np.array([[1, -0.5, 0.2, -0.1], [0.8, 0.3, -0.4, -0.2], [-0.1, 0.6, 0.5, -0.3], [0.9, -0.2, 0.1, -0.4]])


def document(T: int) -> Batch:
    return seen.batch(np.ones((1, T))).replace(pos_BT=np.arange(T)[None])


def value(loss, a0_TE, batch=None):
    """In float64, from the router's logits of one row."""
    with jax.enable_x64(True):
        routing = seen.routing(np.zeros((1, len(a0_TE), 1)), np.zeros((1, len(a0_TE), a0_TE.shape[1])))
        logit_BTE = np.float64(a0_TE)[None]
        routing = routing.replace(logit_BTE=logit_BTE, score_BTE=np.maximum(logit_BTE, 0))
        return float(seen.value(loss, ([routing], batch or document(len(a0_TE)))))


@pytest.fixture(autouse=True)
def stateful(monkeypatch):
    """`seen.value` gives losses no state; a chunk loss begins with its own."""
    total = ChunkSparsity.total
    monkeypatch.setattr(
        ChunkSparsity, "total", lambda self, stats, state: total(self, stats, state or self.init(None))
    )


@pytest.mark.parametrize(("alpha", "want"), [(1, 0.71317), (10, 2.12239), (100, 21.66656)])
def test_locality_of_four_tokens_by_hand(alpha, want):
    assert value(ActivationLocality(alpha=alpha), A0) == pytest.approx(want, abs=5e-6)


def test_identical_rows_are_at_the_entropy_of_the_pattern():
    assert value(ActivationLocality(), np.full((4, 4), 0.01)) == pytest.approx(0.58220, abs=5e-6)
    assert 0 < value(ActivationLocality(), np.ones((4, 4))) < 1e-40


def test_neighbours_are_of_one_document():
    """Of four tokens the second begins a document and the third is absent: no pair at all, then one."""
    apart = document(4).replace(
        seg_BT=np.array([[1, 2, 2, 2]]), valid_BT=np.array([[True, True, False, True]])
    )
    assert value(ActivationLocality(alpha=1), A0, apart) == 0
    pair = apart.replace(valid_BT=np.array([[True, True, True, False]]))
    want = value(ActivationLocality(alpha=1), A0[1:3])
    assert value(ActivationLocality(alpha=1), A0, pair) == pytest.approx(want)


@pytest.mark.parametrize(
    ("a0", "chunk", "want"),
    [
        (A0, 4, 0.56392),
        (A0, 2, 0.41854),
        (np.ones((4, 4)), 4, 0.68358),
        (np.eye(4)[[0, 0, 0, 0]], 4, 0.24997),
        (np.eye(4), 4, 0.99999),
    ],
)
def test_chunks_of_four_tokens_by_hand(a0, chunk, want):
    assert value(ChunkSparsity(chunk=chunk), a0) == pytest.approx(want, abs=1.2e-5)


def random_batch(seed: int, B: int = 3, T: int = 12) -> Batch:
    """Packed documents, the first of a row perhaps continued, with absent tokens anywhere."""
    rng = np.random.default_rng(seed)
    begins_BT = rng.random((B, T)) < 0.25
    seg_BT = np.cumsum(begins_BT, axis=1) + 1
    at_BT = np.broadcast_to(np.arange(T), (B, T))
    first_BT = np.maximum.accumulate(np.where(begins_BT, at_BT, 0), axis=1)
    pos_BT = at_BT - first_BT + np.where(seg_BT == 1, rng.integers(0, 4), 0)
    batch = seen.batch(rng.random((B, T)) < 0.7)
    return batch.replace(seg_BT=seg_BT.astype(np.int32), pos_BT=pos_BT.astype(np.int32))


def chunks_of(batch, length):
    """The columns of every chunk: tokens of one row, one document and one multiple of `length`."""
    found = {}
    for b, t in zip(*np.nonzero(batch.valid_BT), strict=True):
        found.setdefault((b, batch.seg_BT[b, t], batch.pos_BT[b, t] // length), []).append((b, t))
    return list(found.values())


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 64]))
def test_chunks_equal_loops(seed, length):
    batch = random_batch(seed)
    x_BTE = np.float32(np.random.default_rng(seed).random((3, 12, 2))) * batch.valid_BT[..., None]
    begin_BT = np.asarray(begin_chunk(batch, length))
    sum_BTE = np.asarray(sum_since(jnp.asarray(begin_BT), jnp.asarray(x_BTE)))
    chunks = chunks_of(batch, length)
    assert sorted(map(tuple, np.argwhere(begin_BT))) == sorted(cells[0] for cells in chunks)
    for cells in chunks:
        want_E = sum(x_BTE[cell] for cell in cells)
        np.testing.assert_allclose(sum_BTE[cells[-1]], want_E, rtol=1e-5)


def test_the_loss_equals_loops():
    batch = random_batch(5)
    a1_BTE = np.maximum(np.random.default_rng(5).standard_normal((3, 12, 4)), 0)
    p_BTE = a1_BTE / (a1_BTE.sum(-1, keepdims=True) + EPS)
    want = np.mean(
        [np.mean(1 - np.prod([1 - p_BTE[c] + EPS for c in cells], axis=0)) for cells in chunks_of(batch, 3)]
    )
    routing = seen.routing(np.zeros((3, 12, 1)), a1_BTE)
    got = float(seen.value(ChunkSparsity(chunk=3), ([routing], batch)))
    assert got == pytest.approx(want, rel=1e-5)


def test_gradient_is_finite_where_one_expert_has_everything_and_where_none_has():
    loss, batch = ChunkSparsity(chunk=2), document(4)
    routing = seen.routing(np.zeros((1, 4, 1)), np.zeros((1, 4, 3)))

    def used(score_BTE):
        return loss.probe(BlockOut(None, None, routing.replace(score_BTE=score_BTE)), batch)["used"]

    for score_TE in (np.zeros((4, 3)), np.eye(3)[[0, 0, 1, 1]], 1e30 * np.eye(3)[[0, 0, 1, 1]]):
        assert np.isfinite(jax.grad(used)(jnp.float32(score_TE)[None])).all()


def factors(loss, means):
    """The factor in the last step of each period, and the state after all of them."""
    state, found = loss.init(None), []
    for mean in means:
        for _ in range(loss.period):
            state = loss.advance(state, mean)
        found.append(float(state["to"]))
    return found, state


def test_the_factor_by_hand():
    """The first mean has none before it; then * 0.75, * 1.1, * 1.003 raised to 1.025, * 0.604."""
    loss = ChunkSparsity(constant_steps=0, period=2)
    got, _ = factors(loss, [0.40, 0.30, 0.33, 0.331, 0.20])
    np.testing.assert_allclose(0.05 * np.array(got), [0.05, 0.0375, 0.04125, 0.04228, 0.02555], atol=5e-6)


def test_the_factor_moves_linearly_and_only_after_the_constant_steps():
    """Three constant steps, periods of two: means 1, then 3 make 3, reached over the two steps after them."""
    loss, seen_factors = ChunkSparsity(constant_steps=3, period=2), []
    state = loss.init(None)
    for used in (9, 9, 9, 1, 1, 3, 3, 3, 3, 3):
        seen_factors.append(float(loss.factor(state)))
        state = loss.advance(state, used)
    np.testing.assert_allclose(seen_factors, [1, 1, 1, 1, 1, 1, 1, 2, 3, 3], rtol=1e-6)


def test_the_factor_is_capped_and_the_state_is_small():
    loss = ChunkSparsity(constant_steps=0, period=1)
    got, state = factors(loss, [1.0, 3.0, 9.0, 9.0])
    assert got == [1.0, 3.0, 4.0, 4.0]
    assert {np.shape(leaf) for leaf in state.values()} == {()}
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, loss.init(None))


def test_the_loss_is_multiplied_by_the_factor_of_the_state_before():
    loss = ChunkSparsity(chunk=4)
    stats = (({"used": jnp.array([1.5]), "chunks": jnp.array([3.0])},),)
    state = {**loss.init(None), "from": jnp.float32(2.0), "to": jnp.float32(2.0)}
    got, after, metrics = loss.total(stats, state)
    assert (float(got), int(after["step"])) == (1.0, 1)
    assert float(metrics["loss/chunk_sparsity"]) == 0.5


def test_what_cannot_work_is_refused():
    for name, bad in (("chunk", 0), ("period", 0), ("growth", 0.9), ("max_factor", 0.5)):
        with pytest.raises(UsageError, match=f"{name}={bad} must be at least"):
            dataclasses.replace(ChunkSparsity(), **{name: bad})
