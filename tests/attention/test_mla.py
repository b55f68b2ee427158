"""Multi-head latent attention by hand; its two forms; what decoding keeps; training on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from moejax import sharding
from moejax import specs as sp
from moejax.attention.mla import Mla
from moejax.config import BlockConfig, Group, MeshConfig
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.losses.next_token import NextToken
from moejax.ops.attention import mix
from moejax.ops.rope import Yarn
from moejax.seams import Memory
from moejax.training import program
from tests.contracts import latent_oracle, tiny

SMALL = Mla(num_heads=2, kv_rank=8, plain_width=3, turned_width=4, value_width=5)
OPTIONS = {
    "plain": SMALL,
    "a latent for queries": dataclasses.replace(SMALL, q_rank=6),
    "halves are turned": dataclasses.replace(SMALL, interleaved=False),
    "YaRN": dataclasses.replace(SMALL, rope_scaling=Yarn(4.0, original=8), mscale_all_dim=0.7),
    "one wide head": dataclasses.replace(SMALL, num_heads=1, value_width=16),
}
M = tiny.float64(tiny.model())


def drawn(mla):
    """Parameters of which no norm is all ones."""
    fresh = jax.tree.map(np.asarray, sp.init(jax.random.key(0), mla.specs(M)))
    return {name: w + np.linspace(-0.5, 0.5, w.size) if w.ndim == 1 else w for name, w in fresh.items()}


def inputs(rows, length):
    return np.random.default_rng(0).standard_normal((rows, length, M.width))


def empty_cache(mla, rows, length):
    cache = sp.tree_map(lambda spec: jnp.zeros(spec.shape, spec.dtype), mla.cache(M, rows, length))
    return {"attn": cache}


def test_flat_queries_average_the_latents_that_came_before():
    """Latents (1, 7), (7, 1), (5, 5) have norms (0.2, 1.4), (1.4, 0.2), (1, 1); values are the latents."""
    mla = Mla(num_heads=1, kv_rank=2, plain_width=1, turned_width=2, value_width=2, norm_eps=0.0)
    eye = jnp.eye(2)
    p = {
        "q": jnp.zeros((2, 1, 3)),
        "kv_down": jnp.concatenate([eye, eye], axis=1),
        "kv_norm": jnp.ones(2),
        "kv_up": jnp.concatenate([jnp.ones((2, 1)), eye], axis=1)[:, None],
        "o": eye[None],
    }
    x_BTD = jnp.array([[[1.0, 7.0], [7.0, 1.0], [5.0, 5.0]]])
    batch = tiny.document([[0, 0, 0]])
    o_BTD, mixing, memory = mla.apply(p, x_BTD, batch, Memory({}, {}))
    np.testing.assert_allclose(o_BTD[0], [[0.2, 1.4], [0.8, 0.8], [2.6 / 3, 2.6 / 3]], rtol=1e-6)
    np.testing.assert_allclose(mixing.k_BSGA[0, 0, 0], [1.6, 1, 7], rtol=1e-6)  # position 0 turns nothing
    assert memory == Memory({}, {})


def test_cache_and_parameters_are_declared():
    """Numbers per position: the latent and one turned key, however many heads; V3's layer has 187M."""
    mla = Mla(num_heads=128, kv_rank=512, plain_width=128, turned_width=64, value_width=128, q_rank=1536)
    cache = mla.cache(M, 3, 5)
    assert {name: spec.shape for name, spec in cache.items()} == {"row": (3, 5, 512 + 64)}
    found = sp.count(mla.specs(dataclasses.replace(M, width=7168)))
    queries = 7168 * 1536 + 1536 + 1536 * 128 * 192
    keys_and_values = 7168 * 576 + 512 + 512 * 128 * 256
    assert found == queries + keys_and_values + 128 * 128 * 7168 == 187_107_328
    assert mla.mixing_flops(10) == 2 * 128 * (192 + 128) * 10


@pytest.mark.parametrize("mla", OPTIONS.values(), ids=OPTIONS)
def test_both_forms_are_the_oracle(mla):
    """Expanded in one pass, then by single tokens from the rows of a cache, in float64."""
    with jax.enable_x64(True):
        p, x_BTD, batch = drawn(mla), inputs(2, 5), tiny.document(np.zeros((2, 5)))
        step = jax.jit(lambda *args: mla.apply(*args)[::2])
        want_BTD, _ = latent_oracle.attend(mla, p, x_BTD, batch)
        tiny.close(step(p, x_BTD, batch, Memory({}, {}))[0], want_BTD, 1e-12)
        memory = Memory({}, empty_cache(mla, 2, 6))
        for t in range(5):
            here = jax.tree.map(lambda x, t=t: x[:, t : t + 1], batch)
            o_B1D, memory = step(p, x_BTD[:, t : t + 1], here, memory)
            tiny.close(o_B1D, want_BTD[:, t : t + 1], 1e-12)


@pytest.mark.parametrize("queries", [1, 3])
def test_the_record_mixes_other_values_alike_in_both_forms(queries):
    """Unit vectors as values show the map of the last tokens; where a key is absorbed all heads share it."""
    mla, cut = dataclasses.replace(OPTIONS["YaRN"], plain_width=2, value_width=2), 5 - queries
    step = jax.jit(lambda *args: mla.apply(*args)[1:])

    def attention_map(mixing):
        G = mixing.k_BSGA.shape[2]
        eye_BSGA = jnp.broadcast_to(jnp.eye(5)[None, :, None], (1, 5, G, 5))
        return G, mix(mixing.q_BTHA, mixing.k_BSGA, eye_BSGA, mixing.rule)

    with jax.enable_x64(True):
        p, x_BTD, batch = drawn(mla), inputs(1, 5), tiny.document(np.zeros((1, 5)))
        heads, want_BTHA = attention_map(step(p, x_BTD, batch, Memory({}, {}))[0])
        before = jax.tree.map(lambda x: x[:, :cut], (x_BTD, batch))
        now = jax.tree.map(lambda x: x[:, cut:], (x_BTD, batch))
        _, memory = step(p, *before, Memory({}, empty_cache(mla, 1, 5)))
        keys, found_BTHA = attention_map(step(p, *now, memory)[0])
    assert (heads, keys) == (2, 1 if queries == 1 else 2)
    tiny.close(found_BTHA, want_BTHA[:, cut:], 1e-12)


def sizes(jaxpr):
    """Of everything that a program computes."""
    for equation in jaxpr.eqns:
        yield from (np.prod(out.aval.shape) for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from sizes(inner.jaxpr)


def test_decoding_never_expands_what_it_remembers():
    """One token against 500 positions: nothing is as large as the keys of 16 heads; prompts have them."""
    mla, length = Mla(num_heads=16, kv_rank=8, plain_width=2, turned_width=2, value_width=2), 500
    with jax.enable_x64(True):
        p, memory = drawn(mla), Memory({}, empty_cache(mla, 1, length))
        one, three = (
            jax.make_jaxpr(mla.apply)(p, inputs(1, T), tiny.document(np.zeros((1, T))), memory).jaxpr
            for T in (1, 3)
        )
    keys = length * mla.num_heads * mla.plain_width
    assert max(sizes(one)) < keys <= max(sizes(three))


def test_absorbing_pays_for_few_queries():
    """V3: one query more costs 2 * 512 - 256 more per key absorbed; a key costs 512 * 256 to expand."""
    mla = Mla(num_heads=128, kv_rank=512, plain_width=128, turned_width=64, value_width=128)
    assert not mla._expands(170) and mla._expands(171)
    assert not dataclasses.replace(mla, kv_rank=64)._expands(10**6)


def test_decoding_with_heads_over_devices():
    """A prompt whose keys are expanded, then tokens one by one; the cache is whole on every tensor device."""
    m, mla = tiny.model(), Mla(num_heads=4, kv_rank=8, plain_width=2, turned_width=2, value_width=2)
    p = jax.tree.map(np.asarray, sp.init(jax.random.key(0), mla.specs(m)))
    x_BTD, batch = inputs(4, 5).astype(np.float32), tiny.document(np.zeros((4, 5)))
    want_BTD, _ = latent_oracle.attend(mla, p, x_BTD, batch)
    with tiny.on_mesh(data=2, fsdp=2, tensor=2) as mesh:
        place = lambda tree, specs: jax.device_put(
            tree, jax.tree.map(lambda shape: shape.sharding, sp.shapes(specs, mesh))
        )
        cache = mla.cache(m, 4, 6)
        memory = Memory({}, {"attn": place(sp.tree_map(lambda s: np.zeros(s.shape, s.dtype), cache), cache)})
        p, rows = place(p, mla.specs(m)), sharding.place_rows((x_BTD, batch), mesh)
        step = jax.jit(lambda *args: mla.apply(*args)[::2], compiler_options=tiny.QUICK_COMPILE)
        parts = []
        for t in (slice(0, 3), slice(3, 4), slice(4, 5)):
            o_BTD, memory = step(p, *jax.tree.map(lambda x, t=t: x[:, t], rows), memory)
            parts.append(np.asarray(o_BTD))
    tiny.close(np.concatenate(parts, axis=1), want_BTD, 1e-5)


AXES = ({"tensor": 2}, pytest.param({"fsdp": 2, "tensor": 2}, marks=pytest.mark.nightly))


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_a_few_steps_of_training_on_a_mesh(axes):
    """The widths of `base.tiny` with latent attention: the losses of one device, and they fall."""
    run = base.tiny()
    mla = Mla(num_heads=4, kv_rank=16, plain_width=8, turned_width=8, value_width=16, q_rank=24)
    model = dataclasses.replace(run.model, groups=(Group((BlockConfig(mla, Dense(64)),), 2),))
    train = dataclasses.replace(run.train, seq_len=16, losses=(NextToken(),))
    run = dataclasses.replace(run, model=model, train=train)
    token_BT = np.random.default_rng(0).integers(0, 16, (8, 17), np.int32)
    pos_BT = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16))
    batch = {"token": token_BT[:, :-1], "target": token_BT[:, 1:], "pos": pos_BT, "seg": np.ones_like(pos_BT)}
    batch["weight"] = np.ones((8, 16), np.float32)

    def losses(mesh):
        bound = program.build(dataclasses.replace(run, mesh=MeshConfig(**mesh)))
        with bound.mesh_context():
            state, rows, found = bound.init(), bound.place(batch), []
            step = bound.jit_step().lower(state, rows).compile(tiny.QUICK_COMPILE)
            for _ in range(4):
                state, metrics = step(state, rows)
                found.append(float(metrics["loss/next_token"]))
        return found

    one = losses({})
    np.testing.assert_allclose(losses(axes), one, rtol=1e-4)
    assert one[-1] < one[0] - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_rank": 0}, "kv_rank=0 must be at least 1"),
        ({"q_rank": 0}, "q_rank=0 must be at least 1, or None"),
        ({"turned_width": 3}, "turned_width=3 must be even"),
        ({"mscale_all_dim": 1.0}, "mscale_all_dim=1.0 needs attn.rope_scaling with a factor"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"tensor": 4}, "num_heads=2 is not divisible by mesh.tensor=4"),
        ({"fsdp": 3}, "kv_rank=8 is not divisible by mesh.fsdp=3"),
    ],
)
def test_a_mesh_that_cannot_split_it_is_refused(mesh, message):
    with pytest.raises(UsageError, match=message):
        SMALL.check_mesh(MeshConfig(**mesh))
