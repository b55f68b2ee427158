"""What a compiled program needs in memory, and which arrays need it. All figures are of one device."""

import dataclasses
from typing import Any

from moejax.analysis.hlo.parse import Computation, Module, Op, parse
from moejax.analysis.hlo.traffic import NO_TRAFFIC


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a compiled program."""

    arguments: int
    outputs: int
    temporaries: int
    aliases: int  # outputs that live in the place of donated arguments
    peak: int  # held while it runs


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array of a compiled program."""

    bytes: int
    shape: str  # dtype[dims]
    opcode: str  # what makes it; "parameter" for an argument
    op_name: str  # its path of named scopes, or the argument's name

    def __str__(self) -> str:
        return f"{self.bytes / 2**20:.1f} MiB {self.shape} {self.opcode} {self.op_name}".rstrip()


def compiled_memory(compiled: Any) -> Memory:
    """XLA's own account of a program's memory.

    The peak is the larger of the stated one, which for CPU programs leaves out temporaries, and of the sum of
    all parts, because XLA allots the temporaries at once; TPU programs compiled ahead of time may state none.

    Args:
        compiled: `jax.jit(f).lower(...).compile()`.
    """
    stats = compiled.memory_analysis()
    given, returned = stats.argument_size_in_bytes, stats.output_size_in_bytes
    temporaries, aliases = stats.temp_size_in_bytes, stats.alias_size_in_bytes
    peak = max(given + returned + temporaries - aliases, stats.peak_memory_in_bytes)
    return Memory(given, returned, temporaries, aliases, peak)


def largest_buffers(compiled: Any, n: int = 10) -> tuple[Buffer, ...]:
    """The `n` largest arrays that a program is given or makes, largest first.

    Some of them share memory: XLA reuses a place once its array is no longer needed.

    Args:
        compiled: `jax.jit(f).lower(...).compile()`, or its `.as_text()`.
        n: how many at most.
    """
    module = parse(compiled if isinstance(compiled, str) else compiled.as_text())
    ops = [op for home in _scheduled(module.entry, module) for op in home if _is_buffer(op, home, module)]
    buffers = [
        Buffer(shape.bytes, str(shape), op.opcode, op.op_name or op.name)
        for op in ops
        for shape in op.shapes
        if shape.space == 0
    ]
    return tuple(sorted(buffers, key=lambda buffer: buffer.bytes, reverse=True)[:n])


def _scheduled(home: Computation, module: Module) -> list[Computation]:
    """The computations whose every operation has a buffer: not the insides of fusions and reductions."""
    roles = {
        "while": ("condition", "body"),
        "conditional": ("branch_computations", "true_computation", "false_computation"),
        "call": ("to_apply",),
    }
    called = [name for op in home for name in op.called(*roles.get(op.opcode, ()))]
    return [home, *(inner for name in called for inner in _scheduled(module.computations[name], module))]


def _is_buffer(op: Op, home: Computation, module: Module) -> bool:
    """Whether an operation makes an array of its own rather than naming, updating or passing on another's."""
    if op.opcode == "parameter":
        return home is module.entry
    root = op
    if op.opcode == "fusion":
        inside = module.computations[op.called("calls")[0]]
        root = _seen_through(inside.root, inside)
    named = op.opcode in NO_TRAFFIC or op.opcode.endswith("-start")  # the array of a pair is its done's
    return not named and root.opcode != "dynamic-update-slice"


def _seen_through(op: Op, home: Computation) -> Op:
    return _seen_through(home.operands(op)[0], home) if op.opcode in ("bitcast", "reshape") else op
