"""A whole mixture-of-experts layer forward and backward, beside one of ragged products and a dense one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.analysis.flops import count
from moejax.bench.contest import DENSE, OURS, Contest
from moejax.bench.report import Measure
from moejax.dispatch.local import Local
from moejax.ops.experts import gated_experts


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """T tokens of width D to K of E experts of width F."""

    name: str
    T: int
    D: int
    F: int
    E: int
    K: int

    @property
    def flops(self) -> int:
        """Of the matmuls of a forward and a backward pass."""
        return 3 * 3 * 2 * self.T * self.K * self.D * self.F


MANY_EXPERTS = LayerShape("many_experts", T=2048, D=256, F=256, E=64, K=8)
PUBLISHED = (
    LayerShape("olmoe_1b_7b", T=8192, D=2048, F=1024, E=64, K=8),
    LayerShape("mixtral_8x7b", T=4096, D=4096, F=14336, E=8, K=2),
)


def contest(shape: LayerShape, dtype) -> Contest:
    """Sorting, products, combining and all gradients; the routing is given."""
    contestants = functools.partial(_contestants, shape, dtype)
    return Contest(f"layer {shape.name}", shape.flops, contestants, slow="ragged_dot")


def counted(shape: LayerShape, dtype) -> list[Measure]:
    """What moejax's compiled layer computes and holds, beside what it must."""
    compiled = _step(_moejax).lower(*_operands(shape, dtype)).compile()
    work = shape.flops / count(compiled).matmul_flops
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    name = f"layer {shape.name}: "
    return [
        Measure(name + "needed / walked FLOPs", work, "x", "higher"),
        Measure(name + "temporaries", temporaries / 2**20, "MiB", "lower"),
        Measure(name + "256 MiB / temporaries", 256 * 2**20 / temporaries, "x", "higher"),
    ]


def _contestants(shape: LayerShape, dtype) -> Mapping[str, Callable[[], Any]]:
    operands = _operands(shape, dtype)
    tasks = {
        name: functools.partial(_step(layer), *operands)
        for name, layer in ((OURS, _moejax), ("ragged_dot", _ragged))
    }
    return tasks | {DENSE: functools.partial(_step(_dense), *_dense_operands(shape, dtype))}


def _step(layer):
    """Value and gradients in weights, tokens and gates."""

    def loss(p, x_TD, gate_TK, expert_TK, d_y_TD):
        return jnp.vdot(layer(p, x_TD, gate_TK, expert_TK), d_y_TD)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def _moejax(p, x_TD, gate_TK, expert_TK):
    y_BTD, _ = Local()(gated_experts, p, x_TD[None], expert_TK[None], gate_TK[None])
    return y_BTD[0]


def _ragged(p, x_TD, gate_TK, expert_TK):
    """The layer as one writes it with `lax.ragged_dot`."""
    order_R = jnp.argsort(expert_TK.reshape(-1))
    size_E = jnp.bincount(expert_TK.reshape(-1), length=len(p["gate"]))
    x_RD = x_TD[order_R // gate_TK.shape[1]]
    h_RF = jax.nn.silu(lax.ragged_dot(x_RD, p["gate"], size_E)) * lax.ragged_dot(x_RD, p["up"], size_E)
    y_RD = lax.ragged_dot(h_RF, p["down"], size_E)
    y_TKD = y_RD[jnp.argsort(order_R)].reshape(*gate_TK.shape, -1)
    return jnp.einsum("TKD,TK->TD", y_TKD, gate_TK)


def _dense(p, x_TD, gate_TK, expert_TK):
    return (jax.nn.silu(x_TD @ p["gate"]) * (x_TD @ p["up"])) @ p["down"]


def _operands(shape: LayerShape, dtype):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    normal = lambda *dims: jax.random.normal(next(keys), dims, dtype)
    E, D, F = shape.E, shape.D, shape.F
    p = {
        "gate": normal(E, D, F) * D**-0.5,
        "up": normal(E, D, F) * D**-0.5,
        "down": normal(E, F, D) * F**-0.5,
    }
    gate_TK, expert_TK = lax.top_k(jax.random.uniform(next(keys), (shape.T, E)), shape.K)
    return p, normal(shape.T, D), gate_TK.astype(dtype), expert_TK, normal(shape.T, D)


def _dense_operands(shape: LayerShape, dtype):
    """A dense layer in which a token passes as many weights."""
    _, x_TD, gate_TK, expert_TK, d_y_TD = _operands(shape, dtype)
    wide = shape.K * shape.F
    keys = jax.random.split(jax.random.key(1), 3)
    dims = {"gate": (shape.D, wide), "up": (shape.D, wide), "down": (wide, shape.D)}
    p = {
        name: jax.random.normal(key, dim, dtype) * dim[0] ** -0.5
        for key, (name, dim) in zip(keys, dims.items(), strict=True)
    }
    return p, x_TD, gate_TK, expert_TK, d_y_TD
