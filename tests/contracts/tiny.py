"""The small models, batches and meshes that the contract suites share."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np

from moejax import sharding, specs
from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, Group, MeshConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.model import forward
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.seams import Batch, MaskRule, Memory, Mixing, RouteIn, Side

# The programs of these tests run a few times for milliseconds; nearly all of their cost is to compile them.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}
VOCAB = 32
ATTN = Gqa(num_heads=4, num_kv_heads=2, head_width=4)
MOE = Moe(num_experts=4, hidden=8, scorer=Linear(), selector=TopK(2), dispatch=Local())


def model(*blocks, repeat: int = 2, **changes) -> ModelConfig:
    """A model whose rows, heads, experts and vocabulary split over every mesh of the suites."""
    blocks = blocks or (BlockConfig(ATTN, Dense(8)), BlockConfig(ATTN, MOE))
    return dataclasses.replace(ModelConfig(VOCAB, 16, (Group(tuple(blocks), repeat),)), **changes)


def float64(m: ModelConfig) -> ModelConfig:
    """The same model in double precision; use within `jax.enable_x64()`."""
    return dataclasses.replace(m, dtype="float64", param_dtype="float64")


@functools.lru_cache
def _init(m: ModelConfig):
    return jax.jit(functools.partial(forward.init, m=m), compiler_options=QUICK_COMPILE)


@functools.lru_cache
def host_params(m: ModelConfig, seed: int = 0):
    """Fresh parameters as numpy arrays, in the model's precision."""
    with jax.enable_x64(m.param_dtype == "float64"):
        return jax.tree.map(np.asarray, _init(m)(jax.random.key(seed)))


def params(m: ModelConfig, mesh=None, seed: int = 0):
    """Fresh parameters, placed on the mesh; they do not depend on it."""
    fresh = host_params(m, seed)
    if mesh is None:
        return fresh
    return jax.device_put(
        fresh, jax.tree.map(lambda shape: shape.sharding, specs.shapes(forward.specs(m), mesh))
    )


def batch(seed: int, rows: int = 8, length: int = 6, padded: int = 1) -> Batch:
    """Rows of two documents each, the last `padded` positions absent."""
    rng = np.random.default_rng(seed)
    cut = rng.integers(1, length - 1, (rows, 1))
    at = np.arange(length)[None]
    valid = np.broadcast_to(at < length - padded, (rows, length))
    return Batch(
        token_BT=rng.integers(0, VOCAB, (rows, length), dtype=np.int32),
        pos_BT=np.where(at < cut, at, at - cut).astype(np.int32),
        seg_BT=np.where(valid, 1 + (at >= cut), 0).astype(np.int32),
        valid_BT=valid.copy(),
        target_BT=rng.integers(0, VOCAB, (rows, length), dtype=np.int32),
        weight_BT=np.where(valid, rng.choice([0.0, 0.5, 1.0], (rows, length)), 0.0).astype(np.float32),
    )


def document(token_BT) -> Batch:
    """One whole document per row."""
    B, T = np.shape(token_BT)
    pos_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return Batch(np.asarray(token_BT, np.int32), pos_BT, np.ones((B, T), np.int32), np.ones((B, T), bool))


def route_in(x_BTD, batch: Batch, side: Side | None = None) -> RouteIn:
    """What a router sees; every field that is not `x_BTD` holds something else."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(x_BTD.dtype)
    B, T, D = x_BTD.shape
    rule = MaskRule(batch.pos_BT, batch.seg_BT, batch.pos_BT, batch.seg_BT, batch.valid_BT)
    mixing = Mixing(noise(B, T, 2, 4), noise(B, T, 1, 4), rule)
    memory = Memory(carry={}, cache={})
    return RouteIn(noise(B, T, D), noise(B, T, D), x_BTD, mixing, batch, side or Side(), memory, {}, None)


@contextlib.contextmanager
def on_mesh(**axes):
    """Run the body on a mesh with these axis sizes; yields the mesh, None for one device."""
    mesh = sharding.make_mesh(MeshConfig(**axes))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield mesh


def close(got, want, bound: float):
    """Assert that every leaf differs by at most `bound` of the wanted leaf's maximum."""

    def check(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape} is not {b.shape}"
        error, limit = np.max(np.abs(a - b), initial=0.0), bound * max(np.max(np.abs(b), initial=0.0), 1e-30)
        assert error <= limit, f"{jax.tree_util.keystr(path)} differs by {error:.3g}; at most {limit:.3g}"

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree_util.tree_map_with_path(check, got, want)


def equal(got, want):
    """Assert that every leaf is equal bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    got, want = jax.tree.map(np.asarray, (got, want))
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), got, want)
