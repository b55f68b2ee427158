"""Bytes that one HLO operation moves: through memory, and between devices.

Every operation reads its operands and writes its result, but a slice touches only what it slices, an
in-place update only what it updates, and a fusion only its own operands and result, whatever happens inside.
Memory is the device's main memory: what the compiler keeps on the chip (TPU's VMEM) moves for free.
"""

import math
import re

from moejax.analysis.hlo.parse import Computation, Module, Op, Shape

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_NO_TRAFFIC = """
parameter constant tuple get-tuple-element bitcast after-all opt-barrier add-dependency partition-id
replica-id get-dimension-size while conditional call async-start async-update send recv
"""
NO_TRAFFIC = frozenset(_NO_TRAFFIC.split())
# replica_groups={{0,1},{2,3}}, as an iota [2,2]<=[4], or by the axes of a mesh['a'=2,'b'=2] {'b'}
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_VIEWS = frozenset(("bitcast", "reshape"))  # inside a fusion neither moves a byte
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))


def collective(op: Op, home: Computation) -> tuple[str, int] | None:
    """Kind and bytes of a collective: what one device hands in, or for an all-gather what it ends up with.

    A start/done pair counts at its start; nothing leaves a device that is alone in its group.
    """
    kind = op.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or _is_later_leg(op, home) or group_size(op) == 1:
        return None
    operands = home.operands(op)
    if kind == "ragged-all-to-all":  # the rows: at most what is there, at most what fits; the rest is offsets
        return kind, min(operands[0].bytes, operands[1].bytes)
    if kind == "all-gather":
        return kind, sum(shape.bytes for shape in _made(op, operands))
    return kind, sum(x.bytes for x in operands)


def group_size(op: Op) -> int | None:
    """Devices that take part in one group of a collective; None where the program does not say."""
    if listed := _LISTED.search(op.attrs):
        return listed[1].count(",") + 1
    if iota := _IOTA.search(op.attrs):
        return int(iota[1])
    if mesh := _MESH.search(op.attrs):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        # 'a' is a whole axis, 'a':(2)4 the part of it that has 4 devices
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None


def memory_bytes(op: Op, home: Computation, module: Module) -> int:
    """Bytes read plus written by an operation outside of any fusion; 0 for one that only names or calls.

    A start/done pair counts at its start.
    """
    operands = home.operands(op)
    allots = op.opcode == "custom-call" and not operands
    if op.opcode in NO_TRAFFIC or op.opcode.endswith("-done") or allots:
        return 0
    if op.opcode == "fusion":
        inside = module.computations[op.called("calls")[0]]
        read = sum(_read(inside.parameter(i), inside, module, x.main_bytes) for i, x in enumerate(operands))
        return read + min(_written(inside.root, inside, module), op.main_bytes)
    written = sum(shape.bytes for shape in _made(op, operands) if shape.space == 0)
    if op.opcode.removesuffix("-start") in _SLICES:
        sliced = sum(shape.bytes for shape in _made(op, operands))
        return written + min(sliced, operands[0].main_bytes) + sum(x.main_bytes for x in operands[1:])
    if op.opcode == "dynamic-update-slice":
        return operands[1].main_bytes + min(operands[1].bytes, written)
    if op.opcode == "scatter":  # the touched elements are read, combined and written
        return sum(x.main_bytes for x in operands[1:]) + 2 * min(_updates(op, home), written)
    return written + sum(x.main_bytes for x in operands)


def _made(op: Op, operands: tuple[Op, ...]) -> list[Shape]:
    """The arrays of the result that are new: a start may return its operands and scalar handles as well."""
    made, given = list(op.shapes), [shape for x in operands for shape in x.shapes]
    if op.opcode.endswith("-start") and len(made) > len(given):
        for shape in given:
            if shape in made:
                made.remove(shape)
        return [shape for shape in made if shape.dims]
    return made


def _is_later_leg(op: Op, home: Computation) -> bool:
    """Whether this repeats a collective that was started before.

    TPU spreads an asynchronous collective over several fusions, one chain, to overlap it with their work:
    each repeats the operation, but only the first starts it.
    """
    return "chain_id=" in op.attrs and not any('"AsyncCollectiveStart"' in other.attrs for other in home)


def _read(value: Op, inside: Computation, module: Module, whole: int) -> int:
    """Bytes of a fusion's operand that its uses touch, at most the `whole`."""
    touched = 0
    for use in inside:
        for position, name in enumerate(use.operands):
            if name == value.name:
                touched += _touched(use, position, inside, module, whole)
    return min(touched, whole)


def _touched(use: Op, position: int, inside: Computation, module: Module, whole: int) -> int:
    if use.opcode in _VIEWS:
        return _read(use, inside, module, whole)
    if use.opcode in _SLICES and position == 0:
        return use.bytes
    updated = use.opcode == "dynamic-update-slice" and position == 0
    if updated or use.opcode == "tuple" or _is_later_leg(use, inside):  # passed on, not read
        return 0
    if use.opcode == "scatter" and position < len(use.shapes):
        return _updates(use, inside) // len(use.shapes)
    if use.opcode == "fusion":
        nested = module.computations[use.called("calls")[0]]
        return _read(nested.parameter(position), nested, module, whole)
    return whole


def _written(root: Op, inside: Computation, module: Module) -> int:
    """Bytes a fusion writes: its result, or only the updated part of an operand that it updates in place."""
    if root.opcode == "tuple":
        return sum(_written(part, inside, module) for part in inside.operands(root))
    if root.opcode == "parameter" or _is_later_leg(root, inside):
        return 0
    if root.opcode in _VIEWS:
        return _written(inside.operands(root)[0], inside, module)
    if root.opcode == "dynamic-update-slice":
        return inside.operands(root)[1].bytes
    if root.opcode == "scatter":
        return _updates(root, inside)
    if root.opcode == "fusion":
        nested = module.computations[root.called("calls")[0]]
        return _written(nested.root, nested, module)
    return root.bytes


def _updates(scatter: Op, home: Computation) -> int:
    """Bytes of a scatter's updates: its last operands, as many as its results."""
    return sum(x.bytes for x in home.operands(scatter)[-len(scatter.shapes) :])
