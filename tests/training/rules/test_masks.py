"""The largest weights of a whole model, against a sort; counts beyond an int32."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from moejax.specs import Constant, Spec
from moejax.training.rules import masks as mask
from tests.contracts import tiny

TOY = np.array([0.9, -0.1, 0.4, -0.6, 0.05, 0.3, -0.8, 0.2], np.float32)


def by_sort(weights, masks, kept: int):
    """The oracle: the threshold is the (total - kept)-th smallest score, counted from 0."""
    score = {path: np.abs(w.astype(np.float32)) * masks[path] for path, w in weights.items()}
    ranked = np.sort(np.concatenate([s.ravel() for s in score.values()]))
    threshold = ranked[len(ranked) - kept] if kept else np.inf
    return {path: (s >= threshold) & masks[path] for path, s in score.items()}


def strongest(weights, masks, kept: int):
    return jax.tree.map(np.asarray, mask.global_magnitude(weights, masks, jnp.asarray(mask.count(kept))))


def test_eight_weights_by_hand():
    """Five of them stay, then four, whatever has become of those that left."""
    masks = {"a": np.ones(3, bool), "b": np.ones(5, bool)}
    weights = {"a": TOY[:3], "b": TOY[3:]}
    masks = strongest(weights, masks, 5)
    assert [m.tolist() for m in masks.values()] == [[True, False, True], [True, False, True, True, False]]
    grown = {"a": np.array([0.9, 5.0, 0.4], np.float32), "b": TOY[3:]}
    masks = strongest(grown, masks, 4)
    assert [m.tolist() for m in masks.values()] == [[True, False, True], [True, False, False, True, False]]


FLOATS = st.sampled_from([0.0, -0.0, 1e-40, 0.1, -0.1, 0.5, -2.0, 3.0, 3e38])


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (12,), elements=FLOATS), hnp.arrays(bool, (12,)), st.integers(0, 12))
def test_it_is_what_a_sort_says(weight, left, kept):
    """With equals, zeros and numbers of any size."""
    weights, masks = {"a": weight[:4], "b": weight[4:]}, {"a": left[:4], "b": left[4:]}
    tiny.equal(strongest(weights, masks, kept), by_sort(weights, masks, kept))


def test_split_weights_give_the_masks_of_whole_ones():
    """And are not gathered: a mask is split as its weights are."""
    rng = np.random.default_rng(0)
    specs = {
        "up": Spec((2, 4, 16, 8), ("layer", "expert", "embed", "ffn"), Constant(0.0)),
        "q": Spec((16, 4, 4), ("embed", "heads", None), Constant(0.0)),
    }
    weights = {path: rng.standard_normal(spec.shape).astype(np.float32) for path, spec in specs.items()}
    masks = {path: np.ones(spec.shape, bool) for path, spec in specs.items()}
    want = by_sort(weights, masks, 300)
    with tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
        place = {path: leaf.sharding for path, leaf in tiny.specs.shapes(specs, mesh).items()}
        placed = jax.device_put((weights, masks), (place, place))
        step = jax.jit(mask.global_magnitude).lower(*placed, jnp.asarray(mask.count(300))).compile()
        got = step(*placed, jnp.asarray(mask.count(300)))
        assert {path: m.sharding for path, m in got.items()} == place
        assert "all-gather" not in step.as_text() and "all-reduce" in step.as_text()
    tiny.equal(jax.tree.map(np.asarray, got), want)
    assert sum(m.sum() for m in want.values()) == 300


@pytest.mark.parametrize("number", [0, 4095, 4096, 2**31 + 5, 9_600_000_001])
def test_counts_know_more_than_an_int32(number):
    high, low = mask.count(number).tolist()
    assert high * 4096 + low == number and 0 <= low < 4096


def test_a_sum_of_counts_carries():
    flags = {"a": jnp.ones((3, 2, 4095), bool), "b": jnp.ones((4099,), bool).at[0].set(False)}
    assert mask.num_true(flags).tolist() == mask.count(6 * 4095 + 4098).tolist()
    assert float(mask.as_float(mask.num_true(flags))) == 6 * 4095 + 4098


def test_matrices_are_pruned_and_nothing_else():
    specs = {
        "unembed": Spec((8, 4), ("vocab", "embed"), Constant(0.0)),
        "norm": Spec((2, 4), ("layer", None), Constant(0.0)),
        "ffn": {
            "score": {"w": Spec((4, 8), ("embed", None), Constant(0.0))},
            "experts": {"up_bias": Spec((2, 8, 16), ("layer", "expert", "ffn"), Constant(0.0))},
        },
    }
    assert list(mask.prunable(specs, ("*/score/*",))) == ["unembed"]
    assert list(mask.prunable(specs, ())) == ["ffn/score/w", "unembed"]


def test_densities_are_those_of_matrices():
    left = np.ones((2, 2, 4, 2), bool)
    left[0, 1, :3] = False
    spec = Spec(left.shape, ("layer", "expert", "embed", "ffn"), Constant(0.0))
    assert mask.density({"up": left}, {"up": spec})["up"].tolist() == [[1.0, 0.25], [1.0, 1.0]]
