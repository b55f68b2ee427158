"""One optimiser step: it learns, it repeats itself bit for bit, and it never applies what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import BlockConfig, OptimConfig
from moejax.losses.balance import GlobalBalance
from moejax.losses.loss_free import LossFreeBias
from moejax.losses.next_token import NextToken
from moejax.model import forward as model
from moejax.specs import leaves
from moejax.training import faults, objective, optimizer, state, step
from tests.contracts import tiny

LOSSES = (NextToken(), GlobalBalance(0.1), LossFreeBias(rate=0.1))
OPTIM = OptimConfig(learning_rate=0.01, warmup_steps=1)
BATCH = tiny.batch(0, rows=4, length=4)
KEY = jax.random.key(3)
quick_jit = functools.partial(jax.jit, compiler_options=tiny.QUICK_COMPILE)


def config(**changes):
    return tiny.model(BlockConfig(tiny.ATTN, tiny.MOE), repeat=1, **changes)


M = config()


@functools.lru_cache
def parts(m=M):
    """(first state, train step) of a run of a hundred steps."""
    adamw = optimizer.make(OPTIM, 100, model.specs(m))
    first = quick_jit(functools.partial(state.init, m=m, losses=LOSSES, optimizer=adamw))(KEY)
    train = functools.partial(step.train_step, m=m, losses=LOSSES, optimizer=adamw, spike_factor=3.0)
    return first, quick_jit(train)


def run(now, *batches, m=M):
    for batch in batches:
        now, metrics = parts(m)[1](now, batch, KEY)
    return now, metrics


def test_it_learns_one_batch_by_heart():
    first = parts()[0]
    losses = [run(first, *[BATCH] * n)[1]["loss/next_token"] for n in (1, 30)]
    assert losses[1] < 0.5 * losses[0]


def test_it_counts_and_reports():
    now, metrics = run(parts()[0], BATCH, BATCH)
    assert (int(now.step), int(now.skipped)) == (2, 0)
    assert {"train/loss", "train/grad_norm", "loss/next_token", "health/skipped"} <= metrics.keys()


def test_controllers_are_updated_with_the_weights():
    now, _ = run(parts()[0], BATCH)
    assert np.max(np.abs(now.loss_state[2][0][0]["bias_LE"])) == pytest.approx(0.1)


def test_it_repeats_itself_bit_for_bit():
    """From the same state and batch, in a program compiled anew too."""
    twice = [run(parts()[0], BATCH, tiny.batch(1, 4, 4)) for _ in range(2)]
    tiny.equal(*twice)
    train = step.train_step
    adamw = optimizer.make(OPTIM, 100, model.specs(M))
    again = quick_jit(lambda *args: train(*args, m=M, losses=LOSSES, optimizer=adamw, spike_factor=3.0))
    tiny.equal(again(*(parts()[0], BATCH, KEY)), run(parts()[0], BATCH))


def damaged_weight(now):
    return now, BATCH.replace(weight_BT=np.full_like(BATCH.weight_BT, np.inf))


def damaged_parameter(now):
    return now.replace(params={**now.params, "norm": now.params["norm"].at[0].set(jnp.nan)}), BATCH


def loss_spike(now):
    return now.replace(loss_mean=now.loss_mean / 1000), BATCH


@pytest.mark.parametrize("damage", [damaged_weight, damaged_parameter, loss_spike])
def test_a_bad_update_changes_nothing_and_is_counted(damage):
    before, batch = damage(run(parts()[0], BATCH)[0])
    after, metrics = run(before, batch, batch)
    for name in ("params", "opt_state", "loss_state", "loss_mean"):
        tiny.equal(getattr(after, name), getattr(before, name))
    assert int(after.step) == int(before.step) + 2
    assert int(after.skipped) == int(metrics["health/skipped"]) == 2


def test_gradients_that_are_not_finite_are_named_by_leaf(monkeypatch):
    """A finite loss does not save an update with one bad leaf."""
    monkeypatch.setattr(faults, "plan", lambda: faults.parse("gradient=2:nan"))
    first = parts()[0]
    adamw = optimizer.make(OPTIM, 100, model.specs(M))
    train = quick_jit(functools.partial(step.train_step, m=M, losses=LOSSES, optimizer=adamw))
    before, good = train(first, BATCH, KEY)
    after, bad = train(before, BATCH, KEY)
    tiny.equal(after.params, before.params)
    assert np.isfinite(bad["train/loss"]) and int(after.skipped) == 1
    names = [name for name, _ in leaves(model.specs(M))]
    named = lambda metrics: [n for n, flag in zip(names, metrics[step.BAD_GRADIENTS], strict=True) if flag]
    assert named(good) == []
    assert named(bad) == ["group0/block0/ffn/experts/up"]


def test_a_good_update_ends_the_count():
    now = parts()[0]
    skipped = run(now, damaged_weight(now)[1])[0]
    assert int(run(skipped, BATCH)[0].skipped) == 0


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_stays_near_float32(param_dtype):
    m = config(dtype="bfloat16", param_dtype=param_dtype)
    now, metrics = run(parts(m)[0], BATCH, BATCH, m=m)
    assert now.params["group0"]["block0"]["ffn"]["experts"]["up"].dtype == jnp.dtype(param_dtype)
    assert metrics["train/loss"].dtype == jnp.float32
    np.testing.assert_allclose(
        metrics["train/loss"], run(parts()[0], BATCH, BATCH)[1]["train/loss"], rtol=0.03
    )


def test_evaluation_sees_what_training_sees():
    first, _ = parts()
    stats = quick_jit(functools.partial(step.eval_step, m=M, losses=LOSSES))(
        first.params, first.loss_state, BATCH
    )
    value = objective.total_of(LOSSES, first.loss_state, stats)[0]
    np.testing.assert_allclose(value, run(first, BATCH)[1]["train/loss"], rtol=1e-6)
