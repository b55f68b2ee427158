"""The text of an optimised HLO module as records: computations of operations with shapes and operands.

`compiled.as_text()` is the one form of an optimised program that every JAX backend (CPU, GPU, TPU, and
ahead-of-time compiles) hands out. Only what prices an operation is read; the rest stays in `Op.attrs`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # every other dtype is named by its width: f32, s4, f8e4m3fn

_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_OP = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) .*-> .*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|true_computation|false_computation|branch_computations|called_computations)"
    r"=(\{[^}]*\}|%[\w.\-]+)"
)
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an operation's result."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0  # where it lives: 0 the device's main memory, others on the chip or on the host

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype).group())
        return -(-self.size * bits // 8)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("f", "bf", "c"))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation. A tuple result is its arrays in order, nested tuples flattened."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str  # the text between the parentheses: a constant's value, a parameter's number
    attrs: str
    op_name: str  # the path of named scopes and transformations it came from; "" when XLA made it
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def main_bytes(self) -> int:
        """Bytes of the result that lie in the device's main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    def called(self, *roles: str) -> tuple[str, ...]:
        """Names of the computations this operation calls in the given roles (`body`, `to_apply`, ...)."""
        found = [names for role, names in _CALLED.findall(self.attrs) if role in roles]
        return tuple(name for names in found for name in _NAME.findall(names))

    def ints(self, attr: str) -> tuple[int, ...]:
        """The integers of `attr={1,2}`, or () when the attribute is absent."""
        match = re.search(rf"\b{attr}=\{{([\d,]*)\}}", self.attrs)
        return tuple(int(n) for n in match.group(1).split(",") if n) if match else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of operations in execution order."""

    name: str
    ops: dict[str, Op]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops.values())

    @property
    def root(self) -> Op:
        return next(op for op in self if op.is_root)

    def parameter(self, number: int) -> Op:
        return next(op for op in self if op.opcode == "parameter" and op.literal == str(number))

    def operands(self, op: Op) -> tuple[Op, ...]:
        return tuple(self.ops[name] for name in op.operands)


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program as one device runs it."""

    entry: Computation
    computations: dict[str, Computation]
    devices: int  # how many devices run it together


def parse(text: str) -> Module:
    """Read the text of one optimised HLO module.

    Raises:
        ValueError: the text has no entry computation.
    """
    entry, name, ops, computations = None, None, {}, {}
    for line in text.splitlines():
        line = _COMMENT.sub("", line)
        header = _HEADER.match(line)
        if header:
            name, ops = header.group(2), {}
            entry = name if header.group(1) else entry
        elif name and line.startswith("}"):
            computations[name], name = Computation(name, ops), None
        elif name and (op := _parse_op(line)):
            ops[op.name] = op
    if entry is None:
        raise ValueError(f"no ENTRY computation in {len(text)} characters of text; pass compiled.as_text()")
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text[: text.find("\n")])
    return Module(computations[entry], computations, math.prod(map(int, counts)))


def _parse_op(line: str) -> Op | None:
    start = _OP.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode, _, call = rest[end:].strip().partition("(")
    close = _closing("(" + call) - 2  # of the operand list, as an index into `call`
    attrs = call[close + 1 :]
    op_name = _OP_NAME.search(attrs)
    return Op(
        name=start.group(2),
        opcode=opcode,
        shapes=tuple(_shape(*leaf) for leaf in _LEAF.findall(rest[:end])),
        operands=tuple(_NAME.findall(call[:close])),
        literal=call[:close],
        attrs=attrs,
        op_name=_ESCAPE.sub(r"\1", op_name.group(1)) if op_name else "",
        is_root=bool(start.group(1)),
    )


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    """One array; a bounded dynamic dim `<=8` counts as its bound."""
    space = _SPACE.search(layout)
    sizes = tuple(int(n.strip(" <=")) for n in dims.split(",") if n)
    return Shape(dtype, sizes, int(space.group(1)) if space else 0)


def _closing(text: str) -> int:
    """Index just after the parenthesis that closes the one `text` begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
