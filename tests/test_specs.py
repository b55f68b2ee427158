"""Declared parameters: counts by hand, checks, start values, independence of mesh and neighbours."""

import jax
import numpy as np
import pytest

from moejax import specs as sp
from moejax.config import BlockConfig
from moejax.errors import CheckpointError
from moejax.model import forward as model
from moejax.specs import Constant, Normal, Spec
from tests.contracts import tiny

M = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE))


def test_counts_by_hand():
    """Embedding 32x16, norm 16; a layer: norms 2x16, attention 2x16x4x6, router 16x4, experts 4x3x16x8."""
    layer = 2 * 16 + 2 * 16 * 4 * (4 + 2) + 16 * 4
    bank = 4 * 3 * 16 * 8
    assert sp.count(model.specs(M)) == 32 * 16 + 16 + 2 * (layer + bank)
    assert sp.count_active(model.specs(M)) == 32 * 16 + 16 + 2 * (layer + bank // 2)


def test_paths_are_names_with_slashes():
    paths = [path for path, _ in sp.leaves(model.specs(M))]
    assert "group0/block0/ffn/experts/up" in paths
    assert len(set(paths)) == len(paths)


def test_a_name_for_every_dim():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has 2 dims, but 1 names"):
        Spec((2, 3), ("embed",), Constant(0.0))


def test_stacking_adds_a_layer_dim():
    spec = Spec((3,), ("embed",), Constant(0.0)).stacked(2)
    assert (spec.shape, spec.dims) == ((2, 3), ("layer", "embed"))


SPECS = {"a": Spec((2, 3), ("embed", "ffn"), Constant(1.0)), "b": {"c": Spec((4,), (None,), Constant(0.0))}}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": np.ones((2, 3), np.float32)}, r"params\['b/c'\] is missing"),
        (
            {"a": np.ones((3, 2), np.float32), "b": {"c": np.ones(4, np.float32)}},
            r"params\['a'\] is \(3, 2\), the config asks for \(2, 3\) \(embed ffn\)",
        ),
        (
            {"a": np.ones((2, 3), np.float16), "b": {"c": np.ones(4, np.float32)}},
            r"params\['a'\] is float16, the config asks for float32",
        ),
        (
            {
                "a": np.ones((2, 3), np.float32),
                "b": {"c": np.ones(4, np.float32)},
                "d": np.ones(1, np.float32),
            },
            r"params\['d'\] is not in the config",
        ),
    ],
)
def test_check_names_what_is_wrong(params, message):
    with pytest.raises(CheckpointError, match=message):
        sp.check(params, SPECS)


def test_check_accepts_what_init_gives():
    sp.check(sp.init(jax.random.key(0), SPECS), SPECS)


def test_normal_has_its_standard_deviation_and_no_tail():
    """Truncated at two deviations of the untruncated normal, which is 2 / 0.8796 of the declared one."""
    x = np.asarray(Normal(0.5).draw(jax.random.key(0), (100_000,), "float32"))
    assert abs(x.mean()) < 0.01
    assert x.std() == pytest.approx(0.5, rel=0.01)
    assert np.abs(x).max() <= 2 * 0.5 / 0.8796
    assert Normal(0.5).draw(jax.random.key(0), (4,), "bfloat16").dtype == "bfloat16"


def test_a_new_parameter_moves_no_other():
    more = {"0": Spec((5,), (None,), Normal(1.0)), **SPECS, "a": Spec((2, 3), (None, None), Normal(1.0))}
    alone = sp.init(jax.random.key(1), {"a": more["a"]})
    tiny.equal(sp.init(jax.random.key(1), more)["a"], alone["a"])


def test_equal_shapes_start_differently():
    two = {"a": Spec((8,), (None,), Normal(1.0)), "b": Spec((8,), (None,), Normal(1.0))}
    params = sp.init(jax.random.key(0), two)
    assert np.all(np.asarray(params["a"]) != np.asarray(params["b"]))


def test_start_values_do_not_depend_on_the_mesh():
    """But for the last bit, which another program may round otherwise; each device holds only its part."""
    all_specs = dict(sp.leaves(model.specs(M)))
    some = {name: all_specs[name] for name in ("embed", "group0/block0/ffn/experts/up")}
    init = lambda key: sp.init(key, some)
    whole = jax.jit(init)(jax.random.key(0))
    with tiny.on_mesh(fsdp=2, expert=2, tensor=2) as mesh:
        split = jax.jit(lambda key: init(key))(jax.random.key(0))
        where = jax.tree.map(lambda shape: shape.sharding, sp.shapes(some, mesh))
    tiny.close(split, whole, 3e-7)
    assert jax.tree.map(lambda leaf: leaf.sharding, split) == where
    up = split["group0/block0/ffn/experts/up"]
    assert up.addressable_shards[0].data.size * 8 == up.size
