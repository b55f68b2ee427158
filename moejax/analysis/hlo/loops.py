"""How often a `while` runs, where the program says so."""

import re

from moejax.analysis.hlo.parse import Computation, Module, Op

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def trip_count(op: Op, home: Computation, module: Module) -> int | None:
    """Iterations of a `while`: as XLA annotated it, or from a counter below a constant; else None."""
    known = _KNOWN.search(op.attrs)
    if known:
        return int(known.group(1))
    condition, body = (module.computations[op.called(role)[0]] for role in ("condition", "body"))
    test = _unwrap(condition.root, condition, module)
    if test is None or "direction=LT" not in test[0].attrs:
        return None
    counter, limit = test[1]
    index = _element(counter)
    start, stop = _constant(_initial(op, index, home), home), _constant(limit, condition)
    step = _step(index, body, module)
    if None in (start, stop, step) or step < 1:
        return None
    return max(0, -(-(stop - start) // step))


def _unwrap(op: Op, home: Computation, module: Module) -> tuple[Op, tuple[Op, ...]] | None:
    """A binary operation, bare or alone in a fusion, with its operands outside of the fusion."""
    operands = home.operands(op)
    if op.opcode != "fusion":
        return (op, operands) if len(operands) == 2 else None
    inside = module.computations[op.called("calls")[0]]
    inner = inside.operands(inside.root)
    if len(inner) != 2 or any(x.opcode != "parameter" for x in inner):
        return None
    return inside.root, tuple(operands[int(x.literal)] for x in inner)


def _element(op: Op) -> int | None:
    """The index of a `get-tuple-element`."""
    index = re.search(r"index=(\d+)", op.attrs) if op.opcode == "get-tuple-element" else None
    return int(index.group(1)) if index else None


def _initial(op: Op, index: int | None, home: Computation) -> Op | None:
    start = home.operands(op)[0]
    return home.operands(start)[index] if start.opcode == "tuple" and index is not None else None


def _constant(op: Op | None, home: Computation) -> int | None:
    while op is not None and op.opcode == "copy":
        op = home.operands(op)[0]
    is_number = op is not None and op.opcode == "constant" and re.fullmatch(r"-?\d+", op.literal)
    return int(op.literal) if is_number else None


def _step(index: int | None, body: Computation, module: Module) -> int | None:
    """What the body adds to element `index` of the loop's state."""
    if index is None or body.root.opcode != "tuple":
        return None
    update = _unwrap(body.operands(body.root)[index], body, module)
    if update is None or update[0].opcode != "add":
        return None
    sources = [_uncopied(x, body) for x in update[1]]
    steps = [_constant(x, body) for x in sources if _element(x) != index]
    return steps[0] if len(steps) == 1 else None


def _uncopied(op: Op, home: Computation) -> Op:
    return _uncopied(home.operands(op)[0], home) if op.opcode == "copy" else op
