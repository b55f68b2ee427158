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
from moejax.dispatch.adaptive import Adaptive, Mode
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
# The same eight devices, four of which hold an expert together.
SLICED = dataclasses.replace(LOAD, devices=2, slices=4, parameters=16 * 3 * 32 * HIDDEN)
MODES = tuple(Adaptive((Mode(1.25, r=r),)) for r in (0, 1, 2, 4)) + (
    Adaptive((Mode(1.25, r=2, chunks=2),)),
    Adaptive((Mode(1.25, r=2, node_size=4),)),
    Adaptive((Mode(1.0, r=2), Mode(1.25, r=2))),
)
CASES = tuple((scheme, LOAD) for scheme in SCHEMES) + tuple((scheme, SLICED) for scheme in MODES)
HEAD = f"""# Collective bytes of a MoE layer

What one device of eight hands to collectives, and for an all-gather gets, in one layer: its own
{LOAD.tokens} tokens, {LOAD.slots} of {LOAD.experts} experts per token, width {LOAD.width}, float32.

The figures are counted in the optimised programs, loop bodies times their trips. A formula beside each
scheme (`collective_bytes`) predicts them, kind by kind; the last two columns are both sums, and a test holds
every figure equal. Made by `python -m moejax.bench.collectives` on 8 CPU devices.

`RaggedAllToAll` is shown as CPU runs it, as a loop of fixed all-to-alls whose count is that of an equal load;
elsewhere its rows go through one ragged all-to-all, which moves what the loop moves without rounding.

`Adaptive` runs with `mesh.expert={SLICED.devices}` and `mesh.fsdp={SLICED.slices}`: four devices hold an
expert together. Where `r` is not shown it is 1. The other schemes run with `mesh.expert={LOAD.devices}`.

| scheme | pass | all-gather | reduce-scatter | all-to-all | all-reduce | counted | predicted |
|---|---|---:|---:|---:|---:|---:|---:|
"""
KINDS = ("all-gather", "reduce-scatter", "all-to-all", "all-reduce")


@dataclasses.dataclass(frozen=True)
class Row:
    """One scheme in a forward pass, or in a forward and a backward pass."""

    scheme: Any  # Dispatch
    passes: int
    predicted: dict[str, int]
    counted: dict[str, int]


def rows(cases=CASES) -> list[Row]:
    """Every scheme with its load, on a mesh of eight devices, which must be there."""
    found = []
    for scheme, load in cases:
        mesh = sharding.make_mesh(MeshConfig(fsdp=load.slices, expert=load.devices))
        with jax.set_mesh(mesh):
            found += [_row(scheme, load, passes, mesh) for passes in (1, 2)]
    return found


def table(found: list[Row]) -> str:
    """The rows as a page of documentation."""
    lines = []
    for row in found:
        name = "forward" if row.passes == 1 else "and backward"
        figures = [row.counted.get(kind, 0) for kind in KINDS]
        figures += [sum(row.counted.values()), sum(row.predicted.values())]
        lines.append(f"| `{_name(row.scheme)}` | {name} | {' | '.join(f'{n:,}' for n in figures)} |")
    return HEAD + "\n".join(lines) + "\n"


def _row(scheme: Any, load: Load, passes: int, mesh) -> Row:
    def run(p, x_BTD, gate_BTK, expert_BTK):
        y_BTD, _ = scheme(gated_experts, p, x_BTD, expert_BTK, gate_BTK)
        return y_BTD

    def step(cotangent_BTD, expert_BTK, *floats):
        y_BTD, pull = jax.vjp(functools.partial(run, expert_BTK=expert_BTK), *floats)
        return y_BTD, pull(cotangent_BTD)

    p, x_BTD, gate_BTK, expert_BTK = operands(load, mesh, scheme.sliced)
    if passes == 1:
        lowered = jax.jit(run).lower(p, x_BTD, gate_BTK, expert_BTK)
    else:
        lowered = jax.jit(step).lower(x_BTD, expert_BTK, p, x_BTD, gate_BTK)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})  # it will not run
    counted = count(compiled).collective_bytes
    return Row(scheme, passes, scheme.collective_bytes(load, passes), counted)


def operands(load: Load, mesh, sliced: bool):
    """(p, x_BTD, gate_BTK, expert_BTK) as shapes on the mesh, one row of tokens per device."""

    def shape(dims, spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.NamedSharding(mesh, spec))

    B, T, D, E, K = load.devices * load.slices, load.tokens, load.width, load.experts, load.slots
    embed, ffn = ("expert_embed", "expert_ffn") if sliced else ("embed", "ffn")
    up, down = sharding.stored(("expert", embed, ffn)), sharding.stored(("expert", ffn, embed))
    p = {"gate": shape((E, D, HIDDEN), up), "up": shape((E, D, HIDDEN), up)}
    p["down"] = shape((E, HIDDEN, D), down)
    rows = sharding.out("BTD")
    return p, shape((B, T, D), rows), shape((B, T, K), rows), shape((B, T, K), rows, jnp.int32)


def _name(value) -> str:
    """A record by the fields that differ from their defaults."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_name, value))})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    changed = ", ".join(f"{field.name}={_name(now)}" for field, now in fields if now != field.default)
    return f"{type(value).__name__}({changed})"


if __name__ == "__main__":
    print(table(rows()), end="")
