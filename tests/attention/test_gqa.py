"""Grouped-query attention by hand; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import sharding
from moejax import specs as sp
from moejax.attention.gqa import Gqa
from moejax.config import MeshConfig
from moejax.errors import UsageError
from moejax.ops.rope import Interpolation, LongRope
from moejax.seams import Memory
from tests.contracts import tiny


def test_flat_queries_average_what_came_before():
    """Queries of zero: every token gets the mean of the values so far; values and output are the identity."""
    eye = jnp.eye(2)
    p = {"q": jnp.zeros((2, 1, 2)), "k": eye[:, None], "v": eye[:, None], "o": eye[None]}
    x_BTD = jnp.array([[[2.0, 0.0], [4.0, 6.0], [0.0, 0.0]]])
    o_BTD, mixing, memory = Gqa(1, 1, 2).apply(p, x_BTD, tiny.document([[0, 0, 0]]), Memory({}, {}))
    np.testing.assert_allclose(o_BTD, [[[2, 0], [3, 3], [2, 2]]], rtol=1e-6)
    assert mixing.q_BTHA.shape == mixing.k_BSGA.shape == (1, 3, 1, 2)
    assert memory == Memory({}, {})


def test_cache_and_parameters_are_declared():
    """Keys and values of G heads; parameters 2 D A (H + G)."""
    gqa, m = Gqa(num_heads=4, num_kv_heads=2, head_width=4), tiny.model()
    assert gqa.cache(m, 3, 5)["k"].shape == gqa.cache(m, 3, 5)["v"].shape == (3, 5, 2, 4)
    sizes = [np.prod(spec.shape) for spec in gqa.specs(m).values()]
    assert sum(sizes) == 2 * m.width * 4 * (4 + 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of attn.num_kv_heads=3"),
        ({"head_width": 5}, "head_width=5 must be even"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"qk_norm": "both"}, "qk_norm='both' is not one of none, head, all"),
        ({"norm": "layer"}, "norm='layer' is not one of rms, rms_plus_one"),
        ({"clip": 0.0}, "clip=0.0 must be positive, or None"),
        ({"rope_theta": None, "rope_scaling": Interpolation(2.0)}, "rope_theta=None leaves nothing to scale"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Gqa(**{"num_heads": 4, "num_kv_heads": 2, "head_width": 4, **change})


def test_a_mesh_that_cannot_split_the_heads_is_refused():
    with pytest.raises(UsageError, match=r"num_kv_heads=2 is not divisible by mesh.tensor=4"):
        Gqa(4, 2, 4).check_mesh(MeshConfig(tensor=4))


def test_what_is_off_has_no_parameters():
    """And what is on begins as if it were off, sinks aside: they take the share of a score of 0."""
    assert set(Gqa(2, 1, 4).specs(tiny.model())) == {"q", "k", "v", "o"}
    every = Gqa(4, 2, 4, bias=True, out_bias=True, qk_norm="all", norm="rms_plus_one", sinks=True)
    specs = every.specs(tiny.model())
    added = {name: spec.shape for name, spec in specs.items() if name not in "qkvo"}
    heads = {"q_bias": (16,), "k_bias": (8,), "v_bias": (8,), "q_norm": (16,), "k_norm": (8,)}
    assert added == heads | {"o_bias": (16,), "sink": (4,)}
    assert Gqa(4, 2, 4, qk_norm="head").specs(tiny.model())["k_norm"].shape == (4,)
    assert all(specs[name].init.value == 0 for name in added)


def test_norm_and_clip_by_hand():
    """A query (3, 4) over one head has a mean square of 12.5; clipped at 1 the second value is 1."""
    eye = jnp.eye(2)
    p = {"q": eye[:, None], "k": eye[:, None], "v": eye[:, None], "o": eye[None]}
    p |= {"q_norm": jnp.array([1.0, 0.5]), "k_norm": jnp.ones(2)}
    attn = Gqa(1, 1, 2, rope_theta=None, qk_norm="head", norm_eps=0.5, clip=1.0, scale=2**-0.5)
    run = lambda x: attn.apply(p, jnp.array([[x]]), tiny.document([[0]]), Memory({}, {}))
    o_BTD, mixing, _ = run([3.0, 4.0])
    np.testing.assert_allclose(mixing.q_BTHA[0, 0, 0], [3 / 13**0.5, 2 / 13**0.5], rtol=1e-6)
    np.testing.assert_allclose(mixing.k_BSGA[0, 0, 0], [3 / 13**0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(o_BTD, [[[1.0, 1.0]]], rtol=1e-6)


def test_every_option_on_eight_devices():
    """Rows, embed dims and heads are split; value and gradients are those of one device."""
    m = tiny.float64(tiny.model())
    attn = Gqa(4, 2, 4, window=3, bias=True, out_bias=True, qk_norm="all", scale=0.7, clip=1.5, sinks=True)
    specs, rng = attn.specs(m), np.random.default_rng(0)
    p = sp.tree_map(lambda spec: rng.standard_normal(spec.shape) / 2, specs)
    inputs = rng.standard_normal((8, 6, m.width)), tiny.batch(0)
    squares = lambda p, x, batch: jnp.sum(jnp.square(attn.apply(p, x, batch, Memory({}, {}))[0]))
    run = jax.jit(jax.value_and_grad(squares, argnums=(0, 1)), compiler_options=tiny.QUICK_COMPILE)
    with jax.enable_x64(True):
        want = run(p, *inputs)
        with tiny.on_mesh(data=2, fsdp=2, tensor=2) as mesh:
            where = jax.tree.map(lambda shape: shape.sharding, sp.shapes(specs, mesh))
            got = run(jax.device_put(p, where), *sharding.place_rows(inputs, mesh))
            tiny.close(got, want, 1e-10)


def test_frequencies_are_those_of_the_longest_text_there_is_room_for():
    """A row of 3 has the short divisor 1; a slot of 9, from its first token on, the long divisor 2."""
    attn = Gqa(1, 1, 2, rope_theta=10.0, rope_scaling=LongRope((1.0,), (2.0,), original=4))
    p = {name: jnp.eye(2)[:, None] for name in "qkv"} | {"o": jnp.eye(2)[None]}
    x_BTD, batch = jnp.array([[[1.0, 0.0]] * 3]), tiny.document([[0, 0, 0]])
    slot = {"attn": {name: jnp.zeros((1, 9, 1, 2)) for name in "kv"}}
    for cache, divisor in (({}, 1), (slot, 2)):
        q_BTHA = attn.apply(p, x_BTD, batch, Memory({}, cache))[1].q_BTHA
        angle_T = np.arange(3) / divisor
        np.testing.assert_allclose(
            q_BTHA[0, :, 0], np.stack([np.cos(angle_T), np.sin(angle_T)], 1), rtol=1e-6
        )
