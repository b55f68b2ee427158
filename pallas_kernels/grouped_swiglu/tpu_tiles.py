"""Tiles of the gated products on TPU: those of one product that is twice as wide.

Two matrices make one of 2 F columns, and a tile of each makes one twice as wide; only the result is another:
as many columns as one product has, times one, or times three where both products are kept.
"""

import dataclasses

from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Op, Problem, Tiles


def pair(problem: Problem, tiles: Tiles) -> tuple[Problem, Tiles]:
    """The product that costs what two with such tiles cost; `result_bytes` are those of a column of F."""
    twice = dataclasses.replace(problem, N=2 * problem.N, result_bytes=problem.result_bytes / 2)
    return twice, dataclasses.replace(tiles, n=2 * tiles.n)


SWIGLU = Op(
    lambda problem, tiles, chip: tpu_tiles.matmul_seconds(*pair(problem, tiles), chip),
    lambda problem, tiles: tpu_tiles.matmul_vmem(*pair(problem, tiles)),
)
