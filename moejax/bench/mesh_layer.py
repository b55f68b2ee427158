"""A MoE layer on a mesh of virtual devices, forward and backward, for programs about how rows travel."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding
from moejax.analysis.hlo.parse import parse
from moejax.analysis.hlo.traffic import group_size
from moejax.config import MeshConfig, require
from moejax.dispatch.load import Load
from moejax.ops.experts import gated_experts

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Operands:
    """What a layer's step takes."""

    cotangent_BTD: Any
    expert_BTK: Any
    p: Any  # gate, up [E, D, F] and down [E, F, D]
    x_BTD: Any
    gate_BTK: Any

    @property
    def all(self) -> tuple:
        """In the order of `step`."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def mesh_of(load: Load) -> jax.sharding.Mesh:
    """Expert and fsdp axes of the load.

    Raises:
      UsageError: there are fewer devices.
    """
    return sharding.make_mesh(MeshConfig(fsdp=load.slices, expert=load.devices))


def skewed(load: Load, factor: float, seed: int) -> np.ndarray:
    """int32[B, T, 1]: on every device one expert gets `factor` times the mean, others equal shares."""
    require(load.slots == 1, f"skewed loads have one choice per token, not {load.slots}")
    rng, B, T, E = np.random.default_rng(seed), load.devices * load.slices, load.tokens, load.experts
    most = min(T, round(factor * T / E))
    row_T = np.where(np.arange(T) < most, 0, 1 + np.arange(T) % (E - 1))
    return rng.permuted(np.broadcast_to(row_T, (B, T)), axis=1)[..., None].astype(np.int32)


def drawn(load: Load, hidden: int, expert_BTK: np.ndarray, seed: int) -> Operands:
    """Parameters and rows in float32, on the host."""
    rng = np.random.default_rng(seed)
    B, T, K, D, E = load.devices * load.slices, load.tokens, load.slots, load.width, load.experts
    number = lambda *dims: rng.standard_normal(dims, np.float32)
    p = {name: number(E, D, hidden) / math.sqrt(D) for name in ("gate", "up")}
    p["down"] = number(E, hidden, D) / math.sqrt(hidden)
    gate_BTK = rng.random((B, T, K), np.float32)
    return Operands(number(B, T, D), expert_BTK, p, number(B, T, D), gate_BTK)


def placed(operands: Operands, sliced: bool) -> Operands:
    """The operands on the current mesh; `sliced` as `Dispatch.sliced` says."""
    embed, ffn = ("expert_embed", "expert_ffn") if sliced else ("embed", "ffn")
    put = lambda x, spec: jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))
    up, down = sharding.stored(("expert", embed, ffn)), sharding.stored(("expert", ffn, embed))
    p = {name: put(w, down if name == "down" else up) for name, w in operands.p.items()}
    rows = {
        field.name: put(getattr(operands, field.name), sharding.out("BTD"))
        for field in dataclasses.fields(Operands)
        if field.name != "p"
    }
    return Operands(p=p, **rows)


def step(scheme, cotangent_BTD, expert_BTK, *floats):
    """(y_BTD, gradients in parameters, rows and gates) of a layer with this Dispatch."""

    def layer(p, x_BTD, gate_BTK):
        return scheme(gated_experts, p, x_BTD, expert_BTK, gate_BTK)[0]

    y_BTD, pull = jax.vjp(layer, *floats)
    return y_BTD, pull(cotangent_BTD)


def compiled(scheme, operands: Operands, quickly: bool = False) -> Callable:
    """The program of one step; compiled `quickly` it is slower."""
    options = {"xla_backend_optimization_level": 0} if quickly else None
    return jax.jit(functools.partial(step, scheme)).lower(*operands.all).compile(options)


def received(program) -> float:
    """Bytes of floats that one device gets from others in a step."""
    module, total = parse(program.as_text()), 0.0
    for op in (op for computation in module.computations.values() for op in computation):
        sizes = [shape.size for shape in op.shapes if shape.is_float]
        if (devices := group_size(op)) and sizes:
            whole = 4 * sum(sizes) * (devices if op.opcode == "reduce-scatter" else 1)
            total += whole * (devices - 1) / devices
    return total


def difference(found, wanted) -> float:
    """The largest difference of two results, over the largest number of each array."""

    def one(a, b):
        a, b = np.asarray(a), np.asarray(b)
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


def run(program: Callable, operands: Operands) -> None:
    """One step, waited for."""
    jax.block_until_ready(program(*operands.all))


def one_device(scheme, operands: Operands):
    """What the step gives without a mesh."""
    return jax.tree.map(np.asarray, jax.jit(functools.partial(step, scheme))(*map(_here, operands.all)))


def _here(x):
    return jax.tree.map(jnp.asarray, x)
