"""Bytes that every way of dispatching hands to collectives: what formulas say and what the programs contain.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m moejax.bench.collectives > docs/collectives.md
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.analysis.flops import count
from moejax.config import MeshConfig
from moejax.dispatch.all_to_all import RaggedAllToAll
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.load import Load
from moejax.dispatch.local import Local
from moejax.ops.experts import gated_experts

LOAD = Load(devices=8, tokens=64, slots=2, experts=16, width=32)
HIDDEN = 16  # F, of one expert
SCHEMES = (
    Local(),
    Local(chunks=2),
    RaggedAllToAll(),
    RaggedAllToAll(chunks=2),
    FixedCell(),
    FixedCell(capacity_factor=1.25),
    FixedCell(capacity_factor=1.25, chunks=2),
    FixedCell(capacity_factor=1.25, node_size=4),
)
HEAD = f"""# Collective bytes of a MoE layer

What one device of {LOAD.devices} (`mesh.expert={LOAD.devices}`) hands to collectives, and for an all-gather gets, in one layer: \
{LOAD.tokens} tokens of
its own, {LOAD.slots} of {LOAD.experts} experts per token, width {LOAD.width}, float32. A formula beside each scheme (`collective_bytes`) predicts \
it;
the figures are also counted in the optimised programs, loop bodies times their trips, and a test holds the
two equal. Made by `python -m moejax.bench.collectives` on {LOAD.devices} CPU devices.

`RaggedAllToAll` is shown as CPU runs it, as a loop of fixed all-to-alls whose count is that of an equal load;
elsewhere its rows go through one ragged all-to-all, which moves what the loop moves without rounding.

| scheme | pass | all-gather | reduce-scatter | all-to-all | all-reduce |
|---|---|---:|---:|---:|---:|
"""
KINDS = ("all-gather", "reduce-scatter", "all-to-all", "all-reduce")


@dataclasses.dataclass(frozen=True)
class Row:
    """One scheme in a forward pass, or in a forward and a backward pass."""

    scheme: str
    passes: int
    predicted: dict[str, int]
    counted: dict[str, int]


def rows(load: Load = LOAD) -> list[Row]:
    """Every scheme on a mesh of `load.devices`; that many devices must be there."""
    mesh = sharding.make_mesh(MeshConfig(expert=load.devices))
    with jax.set_mesh(mesh):
        return [_row(scheme, load, passes, mesh) for scheme in SCHEMES for passes in (1, 2)]


def table(found: list[Row]) -> str:
    """The rows as a page of documentation."""
    lines = []
    for row in found:
        name = "forward" if row.passes == 1 else "and backward"
        figures = " | ".join(f"{row.counted.get(kind, 0):,}" for kind in KINDS)
        lines.append(f"| `{row.scheme}` | {name} | {figures} |")
    return HEAD + "\n".join(lines) + "\n"


def _row(scheme: Any, load: Load, passes: int, mesh) -> Row:
    def run(p, x_BTD, gate_BTK, expert_BTK):
        y_BTD, _ = scheme(gated_experts, p, x_BTD, expert_BTK, gate_BTK)
        return y_BTD

    def step(cotangent_BTD, expert_BTK, *floats):
        y_BTD, pull = jax.vjp(functools.partial(run, expert_BTK=expert_BTK), *floats)
        return y_BTD, pull(cotangent_BTD)

    p, x_BTD, gate_BTK, expert_BTK = operands(load, mesh)
    if passes == 1:
        lowered = jax.jit(run).lower(p, x_BTD, gate_BTK, expert_BTK)
    else:
        lowered = jax.jit(step).lower(x_BTD, expert_BTK, p, x_BTD, gate_BTK)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})  # it will not run
    counted = count(compiled).collective_bytes
    return Row(_name(scheme), passes, scheme.collective_bytes(load, passes), counted)


def operands(load: Load, mesh):
    """(p, x_BTD, gate_BTK, expert_BTK) as shapes on the mesh, one row of tokens per device."""

    def shape(dims, spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.NamedSharding(mesh, spec))

    B, T, D, E, K = load.devices, load.tokens, load.width, load.experts, load.slots
    experts, rows = sharding.stored(("expert", "", "")), sharding.out("BTD")
    p = {"gate": shape((E, D, HIDDEN), experts), "up": shape((E, D, HIDDEN), experts)}
    p["down"] = shape((E, HIDDEN, D), experts)
    return p, shape((B, T, D), rows), shape((B, T, K), rows), shape((B, T, K), rows, jnp.int32)


def _name(scheme) -> str:
    changed = [
        f"{field.name}={getattr(scheme, field.name)}"
        for field in dataclasses.fields(scheme)
        if getattr(scheme, field.name) != field.default
    ]
    return f"{type(scheme).__name__}({', '.join(changed)})"


if __name__ == "__main__":
    print(table(rows()), end="")
