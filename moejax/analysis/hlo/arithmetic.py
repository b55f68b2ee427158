"""Floating-point operations of one HLO operation.

A multiply-add is two; every other floating-point result is one, a transcendental as much as an addition.
Integer and boolean arithmetic (indices, masks, loop counters) and data movement are none.
"""

import math
import re

from moejax.analysis.hlo.parse import Computation, Module, Op

ELEMENTWISE = frozenset(
    "abs add atan2 cbrt ceil clamp cosine divide erf exponential exponential-minus-one floor log log-plus-one "
    "logistic maximum minimum multiply negate power remainder round-nearest-afz round-nearest-even rsqrt sign "
    "sine sqrt subtract tan tanh".split()
)
_GEMM = re.compile(r'custom_call_target="[^"]*(?:matmul|gemm|ynn_dot)[^"]*"', re.IGNORECASE)


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
        window = math.prod(_window(op, "size", 0))
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
    """Multiply-adds that meet real input, so that padding and dilation (TPU's form of batched dots) are free."""
    lhs, rhs = (x.shapes[0] for x in home.operands(op)[:2])
    out = op.shapes[0]
    lhs_labels, rhs_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attrs).groups()
    spatial = [label for label in out_labels if label.isdigit()]
    fields = [_window(op, name, len(spatial)) for name in ("size", "stride", "lhs_dilate", "rhs_dilate")]
    pads = re.search(r"pad=([\dx_\-]+)", op.attrs)
    pads = pads.group(1).split("x") if pads else ["0_0"] * len(spatial)
    total = 2 * out.dims[out_labels.index("b")] * rhs.dims[rhs_labels.index("i")] * rhs.dims[rhs_labels.index("o")]
    for i, label in enumerate(spatial):
        positions = out.dims[out_labels.index(label)], lhs.dims[lhs_labels.index(label)]
        total *= _hits(*positions, *(field[i] for field in fields), int(pads[i].split("_")[0]))
    return total // _batch_groups(op)


def _hits(out: int, size_in: int, window: int, stride: int, dilate_in: int, dilate_window: int, pad: int) -> int:
    """Pairs (output position, window position) of one dim that fall on an element of the input."""
    starts = (o * stride - pad + w * dilate_window for o in range(out) for w in range(window))
    return sum(at % dilate_in == 0 and 0 <= at // dilate_in < size_in for at in starts)


def _window(op: Op, field: str, rank: int) -> list[int]:
    match = re.search(rf"window=\{{[^}}]*\b{field}=([\dx]+)", op.attrs)
    return [int(n) for n in match.group(1).split("x")] if match else [1] * rank


def _batch_groups(op: Op) -> int:
    match = re.search(r"batch_group_count=(\d+)", op.attrs)
    return int(match.group(1)) if match else 1
