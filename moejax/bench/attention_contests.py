"""Causal attention over packed rows at the shapes of real models, beside jax.nn's."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moejax.bench.contest import OURS, Contest
from pallas_kernels import implementations, segment_attention
from pallas_kernels.segment_attention import api


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """B rows of T tokens, H query heads of width A over G key and value heads."""

    name: str
    B: int
    T: int
    H: int
    G: int
    A: int

    @property
    def flops(self) -> int:
        """Of a forward pass, half of the scores being invisible."""
        return 2 * 2 * self.B * self.H * self.A * self.T**2 // 2


TINY = (AttentionShape("tiny", B=1, T=16, H=2, G=1, A=8),)
SMALL = (
    AttentionShape("small", B=8, T=256, H=8, G=4, A=64),
    AttentionShape("small_long", B=1, T=2048, H=8, G=4, A=64),
)
PUBLISHED = (
    AttentionShape("mixtral_8x7b", B=4, T=4096, H=32, G=8, A=128),
    AttentionShape("qwen3_30b_a3b", B=4, T=4096, H=32, G=4, A=128),
    AttentionShape("olmoe_1b_7b", B=4, T=4096, H=16, G=16, A=128),
)
FORWARD, BOTH = "attention forward", "attention forward and backward"
WORK = {FORWARD: 1.0, BOTH: 3.5}  # two products forward, five backward


def contests(shapes: tuple[AttentionShape, ...], dtype) -> Iterator[Contest]:
    """Forward, and forward with backward, of every shape."""
    for shape in shapes:
        for what, share in WORK.items():
            run = functools.partial(_contestants, shape, what, dtype)
            yield Contest(f"{what} {shape.name}", int(shape.flops * share), run)


def _contestants(shape: AttentionShape, what: str, dtype) -> Mapping[str, Callable[[], Any]]:
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (shape.H, shape.G, shape.G, shape.H)
    q, k, v, d_o = (
        jax.random.normal(key, (shape.B, shape.T, number, shape.A), dtype)
        for key, number in zip(keys, heads, strict=True)
    )
    segment_BT = jnp.zeros((shape.B, shape.T), jnp.int32)
    rivals = {OURS: lambda q, k, v: segment_attention(q, k, v, segment_BT)}
    for name, module in api.IMPLEMENTATIONS.items():
        if implementations.platform() == module.PLATFORM:
            rivals[f"{OURS} {name}"] = functools.partial(_ours, segment_BT, name)
    for name in ("xla", "cudnn") if implementations.platform() == "cuda" else ("xla",):
        rivals[f"jax.nn {name}"] = functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation=name
        )
    if what == FORWARD:
        return {name: functools.partial(jax.jit(rival), q, k, v) for name, rival in rivals.items()}
    return {name: functools.partial(_gradients(rival), q, k, v, d_o) for name, rival in rivals.items()}


def _ours(segment_BT, name: str, q, k, v):
    return segment_attention(q, k, v, segment_BT, implementation=name)


def _gradients(attention):
    def run(q, k, v, d_o):
        o, pull = jax.vjp(attention, q, k, v)
        return o, pull(d_o)

    return jax.jit(run)
