"""What a compiled program costs: FLOPs, memory traffic and communication, loops multiplied out.

`compiled.cost_analysis()` counts the body of a loop once, so a model under `lax.scan` looks L times too
cheap. This walks the optimised program instead and multiplies by trip counts. All figures are those of one
device: a sharded program is counted as the one program each device runs.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from moejax.analysis.hlo.arithmetic import matmul_flops, vector_flops
from moejax.analysis.hlo.loops import trip_count
from moejax.analysis.hlo.parse import Computation, Module, Op, parse
from moejax.analysis.hlo.traffic import collective, memory_bytes
from moejax.analysis.memory import compiled_memory

Trips = int | Callable[[str], int] | None

# What an op name holds beside named scopes: transformations around them, and the names of control flow.
_TRANSFORMS = re.compile(r"\bjit\([^()]*\)|\b(?:transpose|jvp|vmap|remat|checkpoint)\(|\)")
_PLUMBING = re.compile(
    r"while|body|cond|branch_\d+_fun|scan|closed_call|custom_[jv][jv]p_call|shard_map|checkpoint|remat2?"
    r"|rematted_computation|eval_jaxpr"
)
# The scope of a loop whose count depends on data may say how often it usually runs.
_EXPECTED = re.compile(r"expected_trips_(\d+)")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One run of a program on one device."""

    flops: int  # floating-point operations, matmuls included
    matmul_flops: int  # of dots, convolutions and matmul library calls
    bytes: int  # read from and written to memory
    collective_bytes: dict[str, int]  # kind of collective -> bytes handed in (all-gather: received)
    peak_memory: int | None  # bytes; None when counted from text
    devices: int  # that run the program together
    unknown_loops: tuple[str, ...]  # op names of loops whose trip count the program does not say


@dataclasses.dataclass(frozen=True)
class Scope:
    """The share of one named scope in one phase."""

    phase: str  # forward | backward | remat
    scope: str  # named scopes joined by "/"; "" for what has no name
    flops: int
    matmul_flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one operation adds to the total."""

    op: Op
    flops: int = 0
    matmul_flops: int = 0
    bytes: int = 0
    collective: tuple[str, int] | None = None
    unknown_loop: bool = False

    def times(self, n: int) -> "_Share":
        moved = self.collective and (self.collective[0], n * self.collective[1])
        return _Share(
            self.op, n * self.flops, n * self.matmul_flops, n * self.bytes, moved, self.unknown_loop
        )


def count(compiled: Any, dynamic_trips: Trips = None) -> Cost:
    """Count one run of a compiled program.

    A conditional costs its dearest branch. A fusion moves its operands and results only.

    Args:
        compiled: `jax.jit(f).lower(...).compile()`, or its `.as_text()`.
        dynamic_trips: how often loops run whose count is not in the program: a number, or a function of the
            loop's op name. None takes the number in the loop's scope, `expected_trips_8`, and counts loops
            without one once; these are named in `Cost.unknown_loops`.
    """
    module = parse(_text(compiled))
    shares = list(_walk(module.entry, module, dynamic_trips))
    moved = collections.Counter()
    for share in shares:
        if share.collective:
            moved[share.collective[0]] += share.collective[1]
    return Cost(
        flops=sum(share.flops for share in shares),
        matmul_flops=sum(share.matmul_flops for share in shares),
        bytes=sum(share.bytes for share in shares),
        collective_bytes=dict(moved),
        peak_memory=None if isinstance(compiled, str) else compiled_memory(compiled).peak,
        devices=module.devices,
        unknown_loops=tuple(share.op.op_name or share.op.name for share in shares if share.unknown_loop),
    )


def breakdown(compiled: Any, depth: int = 2, dynamic_trips: Trips = None) -> tuple[Scope, ...]:
    """Where the cost goes: one row per phase and `jax.named_scope` path, most FLOPs first.

    Args:
        compiled: as in `count`; the rows sum to its totals.
        depth: how many nested scopes to tell apart; 0 splits by phase only.
        dynamic_trips: as in `count`.
    """
    module = parse(_text(compiled))
    rows = collections.defaultdict(lambda: [0, 0, 0])
    for share in _walk(module.entry, module, dynamic_trips):
        row = rows[_phase(share.op.op_name), _scope(share.op.op_name, depth)]
        for i, value in enumerate((share.flops, share.matmul_flops, share.bytes)):
            row[i] += value
    scopes = (Scope(phase, scope, *row) for (phase, scope), row in rows.items() if any(row))
    return tuple(sorted(scopes, key=lambda row: (row.flops, row.bytes), reverse=True))


def table(rows: tuple[Scope, ...]) -> str:
    """The rows of `breakdown` as text, in GFLOP and GB."""
    width = max([5, *(len(row.scope) for row in rows)])
    lines = [f"{'phase':<9}{'scope':<{width}}{'GFLOP':>12}{'matmul':>12}{'GB':>12}"]
    for row in rows:
        values = "".join(f"{value / 1e9:>12.4g}" for value in (row.flops, row.matmul_flops, row.bytes))
        lines.append(f"{row.phase:<9}{row.scope:<{width}}{values}")
    return "\n".join(lines)


def _text(compiled: Any) -> str:
    return compiled if isinstance(compiled, str) else compiled.as_text()


def _walk(home: Computation, module: Module, trips: Trips) -> Iterator[_Share]:
    """The shares of all operations of a computation and of what it calls."""
    for op in home:
        if op.opcode == "while":
            yield from _loop(op, home, module, trips)
        elif op.opcode == "conditional":
            yield from _dearest(op, module, trips)
        elif op.opcode in ("call", "async-start"):
            for name in op.called("to_apply", "calls"):
                yield from _walk(module.computations[name], module, trips)
        else:
            yield _share(op, home, module)
            if op.opcode == "fusion":
                inside = (_walk(module.computations[name], module, trips) for name in op.called("calls"))
                yield from (dataclasses.replace(share, bytes=0) for shares in inside for share in shares)


def _share(op: Op, home: Computation, module: Module) -> _Share:
    matmul = matmul_flops(op, home)
    return _Share(
        op=op,
        flops=matmul + vector_flops(op, home, module),
        matmul_flops=matmul,
        bytes=memory_bytes(op, home, module),
        collective=collective(op, home),
    )


def _loop(op: Op, home: Computation, module: Module, trips: Trips) -> Iterator[_Share]:
    n = trip_count(op, home, module)
    if n is None:
        expected = _EXPECTED.findall(op.op_name) if trips is None else []
        if expected:
            n = int(expected[-1])
        else:
            yield _Share(op, unknown_loop=True)
            n = trips(op.op_name) if callable(trips) else 1 if trips is None else trips
    body, condition = (module.computations[op.called(role)[0]] for role in ("body", "condition"))
    yield from (share.times(n) for share in _walk(body, module, trips))
    yield from (share.times(n + 1) for share in _walk(condition, module, trips))


def _dearest(op: Op, module: Module, trips: Trips) -> list[_Share]:
    names = op.called("branch_computations", "true_computation", "false_computation")
    branches = [list(_walk(module.computations[name], module, trips)) for name in names]
    return max(branches, key=lambda shares: (sum(s.flops for s in shares), sum(s.bytes for s in shares)))


def _phase(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return "remat"
    return "backward" if "transpose(" in op_name else "forward"


def _scope(op_name: str, depth: int) -> str:
    """The named scopes of an op name, without transformations, control flow and the primitive at its end."""
    parts = [part for part in _TRANSFORMS.sub("/", op_name).split("/") if part]
    return "/".join([part for part in parts[:-1] if not _PLUMBING.fullmatch(part)][:depth])
