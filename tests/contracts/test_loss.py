"""What every loss must do: one meaning however the batch is cut, laid out, rematerialised or padded.

All losses are taken together, as in an objective, and each apart.
Bounds are of each leaf's maximum: 1e-10 in float64, 1e-5 in float32.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding
from moejax import specs as sp
from moejax.config import BlockConfig
from moejax.losses.base import Loss
from moejax.losses.next_token import NextToken
from moejax.training import objective
from tests.contracts import tiny
from tests.contracts.cases import KNOWS_EXPERTS_BY_INDEX, LOSSES, PER_MICRO_BATCH, each

INVARIANT = tuple(loss for name, loss in LOSSES.items() if name not in PER_MICRO_BATCH)
LAYERS = BlockConfig(tiny.ATTN, tiny.MOE)
M = tiny.float64(tiny.model(LAYERS))


def _uneven(batch):
    """Half of the rows lose a position, so that micro-batches have different numbers of tokens."""
    row_BT, at_BT = np.indices(batch.valid_BT.shape)
    valid_BT = batch.valid_BT & ~((row_BT % 2 == 0) & (at_BT == 2))
    return batch.replace(
        valid_BT=valid_BT, weight_BT=np.where(valid_BT, batch.weight_BT, 0).astype(np.float32)
    )


BATCH = _uneven(tiny.batch(0, rows=8, length=4))


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of computing the objective of a batch."""

    accumulate: int = 1
    mesh: tuple = ()  # axis sizes
    changes: tuple = ()  # of the model config
    losses: tuple = INVARIANT


@functools.lru_cache
def program(way: Way, m=M):
    """((objective, (loss states, metrics)), gradient) as a compiled function of (params, states, batch)."""
    m = dataclasses.replace(m, **dict(way.changes))

    def run(params, states, batch):
        return objective.value_and_grad(params, m, way.losses, states, batch, None, way.accumulate)

    return jax.jit(run, compiler_options=tiny.QUICK_COMPILE)


def value_and_grad(way: Way, batch=BATCH, m=M):
    with jax.enable_x64(m.dtype == "float64"), tiny.on_mesh(**dict(way.mesh)) as mesh:
        states = tuple(loss.init(m) for loss in way.losses)
        out = program(way, m)(tiny.params(m, mesh), states, sharding.place_rows(batch, mesh))
        return jax.tree.map(np.asarray, out)


@functools.lru_cache
def plain(m=M):
    """One device, one micro-batch, scanned, nothing rematerialised."""
    return value_and_grad(Way(), m=m)


WAYS = {
    "accumulate_2": Way(accumulate=2),
    "accumulate_8": Way(accumulate=8),
    "data_2": Way(mesh=(("data", 2),)),
    "data_8": Way(mesh=(("data", 8),)),
    "fsdp_2_expert_2_tensor_2": Way(mesh=(("fsdp", 2), ("expert", 2), ("tensor", 2))),
    "expert_4_accumulate_2": Way(mesh=(("expert", 4),), accumulate=2),
    "unrolled": Way(changes=(("scan", False),)),
    "remat_full": Way(changes=(("remat", "full"),)),
    "remat_dots_accumulate_2": Way(changes=(("remat", "dots"),), accumulate=2),
}


@each("way", WAYS)
def test_the_way_changes_nothing(way):
    tiny.close(value_and_grad(WAYS[way]), plain(), 1e-10)


def test_the_way_changes_nothing_in_float32():
    way = Way(accumulate=2, mesh=(("data", 2), ("expert", 2), ("tensor", 2)))
    m = tiny.model(LAYERS)
    tiny.close(value_and_grad(way, m=m), plain(m), 1e-5)


def test_padding_changes_nothing():
    """Two more absent positions in every row, and eight rows that are absent altogether."""

    def padded(x):
        return np.pad(x, ((0, 8), (0, 2)), constant_values=3 if x.dtype == np.int32 else 0)

    batch = jax.tree.map(padded, BATCH)
    tiny.close(value_and_grad(Way(), batch), plain(), 1e-10)


@each("name", PER_MICRO_BATCH)
def test_a_loss_per_micro_batch_is_the_mean_over_them(name):
    """The named exception to invariance, in value and gradient."""
    losses = (dataclasses.replace(LOSSES[name], weight=1.0),)
    (value, _), grads = value_and_grad(Way(accumulate=2, losses=losses))
    halves = (jax.tree.map(lambda x, i=i: x[i::2], BATCH) for i in range(2))
    apart = [value_and_grad(Way(losses=losses), half) for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *((value, grads) for (value, _), grads in apart))
    tiny.close((value, grads), mean, 1e-10)
    whole = value_and_grad(Way(losses=losses))[0][0]
    assert abs(whole - value) > 1e-6, "this batch cannot tell the two apart"


@dataclasses.dataclass(frozen=True)
class Choices(Loss):
    """Reports who was chosen."""

    def probe(self, out, batch):
        return {} if out.routing is None else {"expert": out.routing.expert_BTK}

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        return jnp.zeros(()), state, {"choices": stats}


@functools.cache
def apart():
    """((value of every loss, choices), gradient of their sum under given weights), one program for all."""
    losses = (*LOSSES.values(), Choices())

    def weighted(params, batch, weights):
        states = tuple(loss.init(M) for loss in losses)
        stats = objective.stats_of(params, M, losses, objective.sides_of(M, losses, states), batch, None)
        totals = [loss.total(own, state) for loss, own, state in zip(losses, stats, states, strict=True)]
        values = jnp.stack([value for value, _, _ in totals[:-1]])
        return jnp.vdot(weights, values), (values, totals[-1][2]["choices"])

    return jax.jit(jax.value_and_grad(weighted, has_aux=True), compiler_options=tiny.QUICK_COMPILE)


def one_loss(name, params, batch=BATCH):
    """(value, choices, gradient) of one loss; call within `jax.enable_x64()`."""
    weights = np.array([float(other == name) for other in LOSSES])
    (value, (_, choices)), grads = apart()(params, batch, weights)
    return np.asarray(value), choices, grads


def at_router(params, change):
    """The parameters with `change` applied to every router's own."""

    def one(path, leaf):
        return change(leaf) if "/ffn/score/" in sp.path_name(path) else leaf

    return jax.tree_util.tree_map_with_path(one, params)


@each("name", LOSSES)
def test_router_gradient_is_the_finite_difference(name):
    """Along random directions; where a choice flips on the way there is no derivative, and no claim."""
    with jax.enable_x64(True):
        pairs = [pair for seed in range(4) if (pair := slopes(name, seed))]
    assert len(pairs) >= 2, "too many draws were at a tie"
    for measured, claimed in pairs:
        np.testing.assert_allclose(measured, claimed, rtol=1e-4, atol=1e-10)


def slopes(name, seed, step=1e-5):
    """(finite difference, gradient) along one direction; None where the choice of an expert flips."""
    params, rng = tiny.host_params(M, seed), np.random.default_rng(seed)
    way = at_router(jax.tree.map(np.zeros_like, params), lambda w: rng.standard_normal(w.shape))
    moved = lambda h: jax.tree.map(lambda w, d: w + h * d, params, way)
    _, chosen, grads = one_loss(name, params)
    (low, before, _), (high, after, _) = (one_loss(name, moved(h)) for h in (-step, step))
    flips = jax.tree.map(lambda x, y, z: np.any(x != y) or np.any(x != z), chosen, before, after)
    if any(jax.tree.leaves(flips)):
        return None
    products = jax.tree.map(np.vdot, grads, way)
    return (high - low) / (2 * step), sum(jax.tree.leaves(products))


@each("name", LOSSES)
def test_absent_tokens_and_targets_without_weight_are_irrelevant(name):
    absent, unweighted = ~BATCH.valid_BT, BATCH.weight_BT == 0
    changed = BATCH.replace(
        token_BT=np.where(absent, 5, BATCH.token_BT),
        pos_BT=np.where(absent, 9, BATCH.pos_BT),
        target_BT=np.where(unweighted, 1, BATCH.target_BT),
    )
    with jax.enable_x64(True):
        (value, _, grads), (want, _, want_grads) = (
            one_loss(name, tiny.host_params(M), b) for b in (changed, BATCH)
        )
    tiny.close((value, grads), (want, want_grads), 1e-12)


@each("name", [name for name in LOSSES if name not in KNOWS_EXPERTS_BY_INDEX])
def test_relabelled_experts_change_nothing_but_the_labels(name):
    order_E = np.array([2, 0, 3, 1])

    def relabelled(path, leaf):
        """Layers before experts in a bank; experts last in a router."""
        part = sp.path_name(path).partition("/ffn/")[2].partition("/")[0]
        axis = {"experts": 1, "score": -1}.get(part)
        return leaf if axis is None else np.take(np.asarray(leaf), order_E, axis)

    params = tiny.host_params(M)
    with jax.enable_x64(True):
        value, _, grads = one_loss(name, params)
        got, _, got_grads = one_loss(name, jax.tree_util.tree_map_with_path(relabelled, params))
    tiny.close((got, got_grads), (value, jax.tree_util.tree_map_with_path(relabelled, grads)), 1e-12)


@each("name", LOSSES)
def test_gradients_are_finite_where_all_experts_are_equal(name):
    with jax.enable_x64(True):
        value, _, grads = one_loss(name, at_router(tiny.host_params(M), np.zeros_like))
    chex.assert_tree_all_finite((value, grads))


@each("name", LOSSES)
def test_nothing_to_learn_from_is_finite(name):
    """A micro-batch without a single valid token."""
    nothing = BATCH.replace(valid_BT=np.zeros_like(BATCH.valid_BT), weight_BT=np.zeros_like(BATCH.weight_BT))
    with jax.enable_x64(True):
        value, _, grads = one_loss(name, tiny.host_params(M), nothing)
    assert value == 0
    chex.assert_tree_all_finite(grads)


def test_weight_zero_changes_nothing():
    """Nor does its slope leak into the others through accumulation."""
    silent = tuple(dataclasses.replace(loss, weight=0.0) for loss in LOSSES.values() if loss != NextToken())
    (value, (_, metrics)), grads = value_and_grad(Way(accumulate=2, losses=(NextToken(), *silent)))
    (want, (_, want_metrics)), want_grads = value_and_grad(Way(accumulate=2, losses=(NextToken(),)))
    tiny.close((value, grads), (want, want_grads), 1e-12)
    assert metrics.keys() > want_metrics.keys()
