"""When and how much is pruned, by the paper's figures; what a run with masks is held to."""

import dataclasses
import functools
import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from moejax import sharding
from moejax import specs as sp
from moejax.analysis.scaling_law import avg_params
from moejax.config import BlockConfig, CheckpointConfig, OptimConfig, TrainConfig
from moejax.errors import UsageError
from moejax.losses.next_token import NextToken
from moejax.model import forward as model
from moejax.specs import Constant, Normal, Spec
from moejax.training import optimizer, state, step
from moejax.training.checkpoint import Checkpointer
from moejax.training.rules.gradual_prune import GradualPrune, compute_schedule, prune_schedule
from moejax.training.rules.masks import prunable
from tests.contracts import tiny
from tests.training.rules.test_masks import TOY, by_sort

LOSSES = (NextToken(),)
KEY = jax.random.key(3)
STEPS = 12
RULE = GradualPrune(sparsity=0.5, every=1, unit="absolute")
M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE), repeat=1, tied=False)
MATRICES = prunable(model.specs(M), RULE.dense)
TOTAL = sum(math.prod(spec.shape) for spec in MATRICES.values())
quick_jit = functools.partial(jax.jit, compiler_options=tiny.QUICK_COMPILE)


@pytest.mark.parametrize(
    ("sparsity", "first", "last", "density"), [(0.8, 0.0998, 0.5012, 0.3991), (0.4, 0.1915, 0.6808, 0.7662)]
)
def test_a_quarter_to_three_quarters_of_the_compute(sparsity, first, last, density):
    start, end, average = compute_schedule(sparsity, 1_000_000, 1)
    assert (start / 1e6, end / 1e6, average) == pytest.approx((first, last, density), abs=5e-5)


@pytest.mark.parametrize(
    ("sparsity", "steps", "every", "want"),
    [(0.8, 25050, 100, (2500, 12600)), (0.4, 13050, 25, (2500, 8875))],
)
def test_the_steps_of_the_released_runs(sparsity, steps, every, want):
    assert compute_schedule(sparsity, steps, every)[:2] == want


def test_the_average_of_a_released_run():
    """80%: its mean density, and where its compute is when pruning begins and ends."""
    trace = [(0, 1.0), *prune_schedule(0.8, 2500, 12600, 100)]
    mean = avg_params(trace, 25050)
    assert mean == pytest.approx(0.39921, abs=5e-6)
    until = lambda steps: avg_params([one for one in trace if one[0] <= steps], steps) * steps
    assert until(2500) / until(25050) == pytest.approx(0.2500, abs=5e-5)
    assert until(12600) / until(25050) == pytest.approx(0.7510, abs=5e-5)


def test_ten_steps_by_hand():
    trace = [(0, 1.0), *prune_schedule(0.75, 2, 6, 2)]
    density = [next(d for at, d in reversed(trace) if at <= t) for t in range(10)]
    third = 0.25 ** (1 / 3)
    assert density == pytest.approx([1, 1, third, third, third**2, third**2, 0.25, 0.25, 0.25, 0.25])
    assert [round(d, 4) for d in density[2:7:2]] == [0.63, 0.3969, 0.25]
    assert avg_params(trace, 10) == pytest.approx(0.5054, abs=5e-5)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    st.floats(0, 0.95), st.floats(0, 1), st.floats(0, 1), st.integers(1, 200), st.integers(1000, 9000)
)
def test_a_schedule_keeps_its_shares_of_compute(sparsity, a, b, every, steps):
    """As nearly as steps between events allow."""
    start, end = sorted((a, b))
    first, last, _ = compute_schedule(sparsity, steps, every, start, end)
    assert 1 <= first <= last and (last - first) % every == 0
    assert last < steps or first >= steps
    hypothesis.assume(last < steps)
    trace = [(0, 1.0), *prune_schedule(sparsity, first, last, every)]
    assert trace[-1][1] == pytest.approx(1 - sparsity)
    compute = avg_params(trace, steps) * steps
    before = first / compute  # all of it dense
    after = (steps - last) * (1 - sparsity) / compute
    near = (every + 2) * 3 / compute
    assert before == pytest.approx(start, abs=near) and after == pytest.approx(1 - end, abs=near)


def test_two_events_by_hand():
    """Eight weights at sparsity 0.5; gradients are 0, so that weights only leave."""
    specs = {
        "a": Spec((1, 4), ("embed", "ffn"), Constant(0.0)),
        "b": Spec((4, 1), ("embed", "ffn"), Constant(0.0)),
    }
    params = {"a": jnp.asarray(TOY[:4]).reshape(1, 4), "b": jnp.asarray(TOY[4:]).reshape(4, 1)}
    rule = GradualPrune(sparsity=0.5, start=0.25, end=0.6, every=1)
    assert rule.events(4) == [(1, 0.5**0.5), (2, 0.5)]
    pruned = rule.around(optimizer._can_skip(optax.set_to_zero()), specs, 4)
    now, seen = pruned.init(params), []
    for _ in range(3):
        updates, now = pruned.update(jax.tree.map(jnp.ones_like, params), now, params)
        params = optax.apply_updates(params, updates)
        seen.append([*params["a"].ravel().tolist(), *params["b"].ravel().tolist()])
    kept = lambda *which: [float(w) if i in which else 0.0 for i, w in enumerate(TOY)]
    assert seen == [kept(0, 2, 3, 5, 6), kept(0, 2, 3, 6), kept(0, 2, 3, 6)]
    assert {name: float(value) for name, value in now.metrics.items()} == {
        "prune/weights": 4.0,
        "prune/active_weights": 4.0,
        "prune/min_density": 0.25,
    }


def test_weights_are_compared_in_units_of_the_start():
    """Matrices of the same shape in other units: half of each leaves, or all of the smaller one."""
    weight = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    specs = {name: Spec((1, 4), ("embed", "ffn"), Normal(std)) for name, std in (("a", 0.1), ("b", 1.0))}
    params = {"a": jnp.asarray(0.1 * weight), "b": jnp.asarray(weight)}
    left = {}
    for unit in ("start", "absolute"):
        rule = GradualPrune(sparsity=0.5, start=0.5, end=0.5, every=1, unit=unit)
        pruned = rule.around(optimizer._can_skip(optax.set_to_zero()), specs, 2)
        updates, _ = pruned.update(params, pruned.init(params), params)
        new = optax.apply_updates(params, updates)
        left[unit] = {name: (np.asarray(w) != 0).ravel().tolist() for name, w in new.items()}
    assert left["start"] == {name: [False, False, True, True] for name in "ab"}
    assert left["absolute"] == {"a": [False] * 4, "b": [True] * 4}


def adamw(*rules, **changes):
    settings = {"steps": STEPS, "batch_rows": 4, "seq_len": 4, "losses": LOSSES} | changes
    optim = OptimConfig(learning_rate=0.01, warmup_steps=1, weight_decay=0.5)
    return optimizer.of_run(TrainConfig(**settings, rules=rules, optim=optim), model.specs(M))


@functools.lru_cache
def program(*rules):
    """(first state, train step)."""
    parts = {"m": M, "losses": LOSSES, "optimizer": adamw(*rules)}
    return quick_jit(functools.partial(state.init, **parts))(KEY), quick_jit(
        functools.partial(step.train_step, **parts)
    )


@functools.lru_cache
def trajectory(*rules):
    """States before each step and after the last, and the metrics of each step, on the host."""
    now, train = program(*rules)
    states, said = [jax.tree.map(np.asarray, now)], []
    for number in range(STEPS):
        now, metrics = train(now, tiny.batch(number, rows=4, length=4), KEY)
        states.append(jax.tree.map(np.asarray, now))
        said.append(metrics)
    return states, said


def weights(params):
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {sp.path_name(path): leaf for path, leaf in flat}


def test_masks_shrink_to_what_the_schedule_says():
    states, said = trajectory(RULE)
    events = RULE.events(STEPS)
    assert len(events) >= 3
    due = dict(events)
    for before, after in itertools.pairwise(states):
        old, new = before.opt_state.masks, after.opt_state.masks
        assert old.keys() == MATRICES.keys()
        assert all((new[path] <= old[path]).all() for path in new)
        if int(after.step) not in due:
            tiny.equal(new, old)
        else:
            kept = math.floor(due[int(after.step)] * TOTAL)
            assert (
                sum(m.sum() for m in new.values()) == kept == float(said[int(before.step)]["prune/weights"])
            )
    assert sum(m.sum() for m in states[-1].opt_state.masks.values()) == math.floor(0.5 * TOTAL)


def test_what_has_left_is_zero():
    for now in trajectory(RULE)[0]:
        params = weights(now.params)
        assert all((params[path][~mask] == 0).all() for path, mask in now.opt_state.masks.items())


def test_the_first_event_is_what_a_sort_keeps():
    """Of the weights that dense training has then; the two programs round differently."""
    due, share = RULE.events(STEPS)[0]
    whole = {path: w for path, w in weights(trajectory()[0][due].params).items() if path in MATRICES}
    ones = {path: np.ones(w.shape, bool) for path, w in whole.items()}
    want, got = by_sort(whole, ones, math.floor(share * TOTAL)), trajectory(RULE)[0][due].opt_state.masks
    assert sum((want[path] != got[path]).sum() for path in MATRICES) <= 2


def test_weights_that_have_left_get_no_gradient():
    """Adam's moments of them only decay, by exactly b1 and b2 a step, and clipping does not see them."""
    states, _ = trajectory(RULE)
    adam = lambda now: next(part for part in now.opt_state.inner if hasattr(part, "mu"))
    for before, after in itertools.pairwise(states):
        old, new = adam(before), adam(after)
        for path, mask in before.opt_state.masks.items():
            for a, b, decay in ((old.mu, new.mu, 0.9), (old.nu, new.nu, 0.95)):
                np.testing.assert_array_equal(
                    weights(b)[path][~mask], np.float32(decay) * weights(a)[path][~mask], strict=True
                )
    assert sum((~m).sum() for m in states[-2].opt_state.masks.values()) > 0


def test_sparsity_zero_is_dense_training_bit_for_bit():
    dense, sparse = trajectory(), trajectory(GradualPrune(0.0, every=1))
    tiny.equal(sparse, dense)


def test_masks_that_leave_everything_change_nothing():
    """Up to rounding, as the compiler joins operations differently."""
    first = RULE.events(STEPS)[0][0]
    dense, sparse = trajectory()[0][first - 1], trajectory(RULE)[0][first - 1]
    tiny.close((sparse.params, sparse.opt_state.inner), (dense.params, dense.opt_state), 1e-5)
    assert first >= 2


def test_routers_norms_and_embeddings_stay_dense():
    assert sorted(path.rpartition("/")[2] for path in MATRICES) == [
        *("down", "gate", "k", "o", "q", "unembed", "up", "v")
    ]
    tied = prunable(model.specs(dataclasses.replace(M, tied=True)), RULE.dense)
    assert sorted(MATRICES.keys() - tied.keys()) == ["unembed"]


def test_a_skipped_update_prunes_nothing():
    """The event comes with the next update that is applied."""
    states, _ = trajectory(RULE)
    due = RULE.events(STEPS)[0][0]
    before, train = states[due - 1], program(RULE)[1]
    batch = tiny.batch(due - 1, rows=4, length=4)
    bad = batch.replace(weight_BT=np.full_like(batch.weight_BT, np.inf))
    after, _ = train(before, bad, KEY)
    tiny.equal((after.params, after.opt_state), (before.params, before.opt_state))
    later, _ = train(after, batch, KEY)
    assert sum(m.sum() for m in later.opt_state.masks.values()) == math.floor(
        RULE.events(STEPS)[0][1] * TOTAL
    )


def test_devices_agree_with_one():
    """Masks of split weights are split as these are, and the same but for rounding."""
    parts = {"m": M, "losses": LOSSES, "optimizer": adamw(RULE)}
    last = RULE.events(STEPS)[1][0]
    with tiny.on_mesh(fsdp=2, tensor=2) as mesh:
        now = quick_jit(functools.partial(state.init, **parts))(KEY)
        train = quick_jit(functools.partial(step.train_step, **parts))
        for number in range(last):
            batch = sharding.place_rows(tiny.batch(number, rows=4, length=4), mesh)
            now, _ = train(now, batch, KEY)
    own = {path: w.sharding for path, w in weights(now.params).items() if path in MATRICES}
    assert {path: m.sharding for path, m in now.opt_state.masks.items()} == own
    want = trajectory(RULE)[0][last]
    assert sum((m != want.opt_state.masks[path]).sum() for path, m in now.opt_state.masks.items()) <= 4
    assert sum(m.sum() for m in now.opt_state.masks.values()) == math.floor(RULE.events(STEPS)[1][1] * TOTAL)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match=r"sparsity=1\.0"):
        GradualPrune(1.0)
    with pytest.raises(UsageError, match=r"start=0\.8, end=0\.2"):
        GradualPrune(0.5, start=0.8, end=0.2)
    with pytest.raises(UsageError, match="leaves no matrix"):
        GradualPrune(0.5, dense=("*",)).around(None, model.specs(M), 100)
    with pytest.raises(UsageError, match="begins with step 10, but"):
        GradualPrune(0.5, every=2, start=1.0, end=1.0).events(10)


def test_a_run_goes_on_across_an_event_as_if_it_had_not_stopped(tmp_path):
    """Saved and restored before every step: masks, moments and weights are the same to the bit."""
    first, train = program(RULE)
    want = trajectory(RULE)[0]
    for number in (RULE.events(STEPS)[0][0] - 1, RULE.events(STEPS)[1][0] - 1):
        with Checkpointer(tmp_path / str(number), CheckpointConfig()) as checkpoints:
            checkpoints.save(number, jax.tree.map(jnp.asarray, want[number]), {})
            checkpoints.wait()
            now = checkpoints.restore(jax.eval_shape(lambda: first)).state
        tiny.equal(now, want[number])
        now, _ = train(now, tiny.batch(number, rows=4, length=4), KEY)
        tiny.equal(now, want[number + 1])
        assert sum(m.sum() for m in now.opt_state.masks.values()) < sum(
            m.sum() for m in want[number].opt_state.masks.values()
        )
