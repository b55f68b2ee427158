"""Floating-point operations of one HLO operation.

A multiply-add is two; every other floating-point result is one, a transcendental as much as an addition.
Integer and boolean arithmetic (indices, masks, loop counters) and data movement are none.
"""

import dataclasses
import math
import re

from moejax.analysis.hlo.parse import Computation, Module, Op

_ELEMENTWISE = """
abs add atan2 cbrt ceil clamp cosine divide erf exponential exponential-minus-one floor log log-plus-one
logistic maximum minimum multiply negate power remainder round-nearest-afz round-nearest-even rsqrt sign
sine sqrt subtract tan tanh
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
_GEMM = re.compile(r'custom_call_target="[^"]*(?:matmul|gemm)[^"]*"', re.IGNORECASE)


def matmul_flops(op: Op, home: Computation) -> int:
    """FLOPs of a dot, a convolution or a call of a matmul library; 0 for every other operation."""
    if op.opcode == "dot":
        lhs = home.ops[op.operands[0]].shapes[0]
        return 2 * op.shapes[0].size * math.prod(lhs.dims[i] for i in op.ints("lhs_contracting_dims"))
    if op.opcode == "convolution":
        return _convolution(op, home)
    if op.opcode == "custom-call" and _GEMM.search(op.attrs):
        return _gemm(op, home)
    return 0


def vector_flops(op: Op, home: Computation, module: Module) -> int:
    """FLOPs of an elementwise operation or a reduction; 0 for matmuls and data movement."""
    if not op.shapes or not op.shapes[0].is_float:
        return 0
    if op.opcode in ELEMENTWISE:
        return op.shapes[0].size
    if op.opcode == "reduce":
        taken = home.operands(op)[0].shapes[0].size
        return (taken - op.shapes[0].size) * _combiner(op, module)
    if op.opcode == "reduce-window":
        window = math.prod(window.size for window in _windows(op, len(op.shapes[0].dims)))
        return op.shapes[0].size * (window - 1) * _combiner(op, module)
    if op.opcode == "scatter":
        return home.operands(op)[-1].shapes[0].size * _combiner(op, module)
    return 0


def _combiner(op: Op, module: Module) -> int:
    """FLOPs of one application of the computation that combines two elements."""
    bodies = [module.computations[name] for name in op.called("to_apply")]
    return sum(vector_flops(inner, body, module) for body in bodies for inner in body)


def _gemm(op: Op, home: Computation) -> int:
    """2BMNK from sizes alone, whatever is transposed: |lhs| |rhs| / (B |out|) = K^2."""
    lhs, rhs = (x.shapes[0] for x in home.operands(op)[:2])
    out = op.shapes[0]
    batch = math.prod(out.dims[:-2])
    return 2 * out.size * math.isqrt(lhs.size * rhs.size // (out.size * batch))


def _convolution(op: Op, home: Computation) -> int:
    """Multiply-adds that meet real input: padding and dilation are free (TPU's batched dots have them)."""
    lhs, rhs = (x.shapes[0] for x in home.operands(op)[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attrs).groups()
    lhs_dim, rhs_dim, out_dim = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels, (lhs, rhs, op.shapes[0]), strict=True)
    )
    total = 2 * out_dim["b"] * rhs_dim["i"] * rhs_dim["o"]
    spatial = [label for label in labels[2] if label.isdigit()]
    for label, window in zip(sorted(spatial), _windows(op, len(spatial)), strict=True):
        total *= window.hits(out_dim[label], lhs_dim[label])
    return total


@dataclasses.dataclass(frozen=True)
class _Window:
    """One spatial dim of a convolution or of a windowed reduction."""

    size: int
    stride: int
    pad: int  # before the first element
    lhs_dilate: int
    rhs_dilate: int

    def hits(self, outputs: int, inputs: int) -> int:
        """Pairs (output position, window position) that fall on an element of the input."""
        corners = range(-self.pad, -self.pad + outputs * self.stride, self.stride)
        places = (corner + w * self.rhs_dilate for corner in corners for w in range(self.size))
        return sum(at % self.lhs_dilate == 0 and 0 <= at // self.lhs_dilate < inputs for at in places)


def _windows(op: Op, rank: int) -> list[_Window]:
    """The windows of `window={size=3x3 stride=1x2 pad=1_1x0_0}`; what is not printed is 1, padding 0."""
    text = re.search(r"window=\{([^}]*)\}", op.attrs)
    printed = dict(field.split("=") for field in text.group(1).split()) if text else {}
    ones, zeros = "x".join("1" * rank), "x".join("0" * rank)
    size, stride, lhs_dilate, rhs_dilate = (
        [int(n) for n in printed.get(name, ones).split("x") if n]
        for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
    )
    pads = [int(pad.split("_")[0]) for pad in printed.get("pad", zeros).split("x") if pad]
    return [_Window(*dims) for dims in zip(size, stride, pads, lhs_dilate, rhs_dilate, strict=True)]
