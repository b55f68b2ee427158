"""How large the tiles of a grouped product on TPU are: the cheapest by a model of time that fit in VMEM.

A product is a walk over tiles. What it costs is the larger of two times, arithmetic and traffic with the
main memory, and a little for every step:

- arithmetic counts whole tiles, so that a tile that two groups share is paid twice: few rows waste less;
- traffic counts what is fetched again for other tiles: wide tiles, and a K that is one tile, fetch less.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.tpu_chips import FLOAT32_PASSES, STEP_SECONDS, VMEM_SHARE, Chip

LANES = 128
# what a kernel is granted beyond what is counted: registers that spill, the compiler's own
SPILL_SHARE, SPILL_BYTES = 0.25, 2**20
MOST_ROWS, MOST_WIDTH = 512, 2048
VISITS_IN_SMEM = 16384  # a few hundred KiB of its MiB


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Rows, contracted width and result width of the blocks that a step works on."""

    m: int
    k: int
    n: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """A product of M rows in G groups, K wide and N wide, with operands and a result of so many bytes."""

    M: int
    K: int
    N: int
    G: int
    operand_bytes: int
    result_bytes: int


def most_visits(num_rows: int, num_groups: int, rows: int) -> int:
    """The most pairs of a tile of so many rows and a group in it, where none is without the other."""
    return -(-num_rows // rows) + num_groups - 1


def matmul_vmem(problem: Problem, tiles: Tiles) -> int:
    """Bytes of VMEM granted to `tpu.matmul`."""
    m, k, n = _padded(tiles, problem)
    operands = (m * k + k * n) * problem.operand_bytes
    result = m * n * problem.result_bytes
    sums = m * n * 4 * (2 if tiles.k < problem.K else 1)
    masked = operands if problem.K % tiles.k else 0
    return _granted(operands + result, sums + masked + _pieces(problem, operands))


def outer_vmem(problem: Problem, tiles: Tiles) -> int:
    """Bytes of VMEM granted to `tpu.outer`, which masks its operands."""
    m, k, n = _padded(tiles, problem)
    operands = (m * k + m * n) * problem.operand_bytes
    result = k * n * problem.result_bytes
    return _granted(operands + result, k * n * 4 + operands + _pieces(problem, operands))


def _pieces(problem: Problem, operands: int) -> int:
    """Float32 operands are cut into three of bfloat16."""
    return 3 * operands // 2 if problem.operand_bytes == 4 else 0


def _granted(moved: int, kept: int) -> int:
    """What is moved is there twice, so that the next blocks come while these are in use."""
    return int((2 * moved + kept) * (1 + SPILL_SHARE)) + SPILL_BYTES


def matmul_seconds(problem: Problem, tiles: Tiles, chip: Chip) -> float:
    """Time of `tpu.matmul` by the model, when group boundaries lie anywhere."""
    visits, tiles_k, tiles_n = _counts(problem, tiles)
    rows = problem.M if tiles_k == 1 else visits * tiles.m
    matrices = problem.G if tiles_k == 1 else visits
    fetched = tiles_n * rows * problem.K + matrices * problem.K * problem.N
    moved = fetched * problem.operand_bytes + problem.M * problem.N * problem.result_bytes
    return _seconds(problem, tiles, moved, chip)


def outer_seconds(problem: Problem, tiles: Tiles, chip: Chip) -> float:
    """Time of `tpu.outer` by the model, when group boundaries lie anywhere."""
    _, tiles_k, tiles_n = _counts(problem, tiles)
    fetched = problem.M * (tiles_n * problem.K + tiles_k * problem.N)
    moved = fetched * problem.operand_bytes + problem.G * problem.K * problem.N * problem.result_bytes
    return _seconds(problem, tiles, moved, chip)


class Op(NamedTuple):
    """How long a product takes with some tiles, and how much VMEM."""

    seconds: Callable[[Problem, Tiles, Chip], float]
    vmem: Callable[[Problem, Tiles], int]


MATMUL, OUTER = Op(matmul_seconds, matmul_vmem), Op(outer_seconds, outer_vmem)


@functools.lru_cache(maxsize=1024)
def choose(op: Op, problem: Problem, chip: Chip) -> Tiles:
    """The tiles of least time among those that fit."""
    rows = _sizes(problem.M, sublanes(problem), MOST_ROWS)
    widths_K, widths_N = (_sizes(width, LANES, MOST_WIDTH) for width in (problem.K, problem.N))
    every = [Tiles(*sizes) for sizes in itertools.product(rows, widths_K, widths_N)]
    visits = lambda tiles: most_visits(problem.M, problem.G, tiles.m)
    fits = lambda tiles: op.vmem(problem, tiles) <= chip.vmem * VMEM_SHARE and visits(tiles) <= VISITS_IN_SMEM
    return min(filter(fits, every), key=lambda tiles: op.seconds(problem, tiles, chip))


def sublanes(problem: Problem) -> int:
    """Rows of the smallest block of an operand."""
    return 8 * 4 // problem.operand_bytes


def _sizes(dim: int, least: int, most: int) -> list[int]:
    """Tile sizes to try: the dim itself, which need not be aligned, and aligned ones below it."""
    aligned = [least * 2**i for i in range((most // least).bit_length())]
    return [dim, *(size for size in reversed(aligned) if size < dim)]


def _padded(tiles: Tiles, problem: Problem) -> tuple[int, int, int]:
    align = lambda size, to: -(-size // to) * to
    return align(tiles.m, sublanes(problem)), align(tiles.k, LANES), align(tiles.n, LANES)


def _counts(problem: Problem, tiles: Tiles) -> tuple[int, int, int]:
    visits = most_visits(problem.M, min(problem.G, problem.M), tiles.m)
    return visits, -(-problem.K // tiles.k), -(-problem.N // tiles.n)


def _seconds(problem: Problem, tiles: Tiles, moved: int, chip: Chip) -> float:
    counts = _counts(problem, tiles)
    # the matrix unit holds square blocks of one operand; fewer rows than it is wide leave it waiting
    padded = (max(size, chip.mxu) for size in _padded(tiles, problem))
    flops = 2 * math.prod(counts) * math.prod(padded)
    flops *= FLOAT32_PASSES if problem.operand_bytes == jnp.dtype(jnp.float32).itemsize else 1
    return max(flops / chip.flops, moved / chip.bandwidth) + math.prod(counts) * STEP_SECONDS
