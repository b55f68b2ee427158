"""How large the blocks of segment attention on TPU are: the cheapest by a model of time that fit in VMEM.

A kernel walks over pairs of a query block and a key block that somebody sees. A walk costs the larger of
arithmetic and traffic, and a little for every step of the grid, also for those that have nothing to do:

- arithmetic counts whole blocks, so that small ones waste less at the diagonal and at a window's edges;
- traffic counts keys and values once per query block, so that tall ones fetch less.
"""

import dataclasses
import functools
import itertools

from pallas_kernels.tpu_chips import FLOAT32_PASSES, STEP_SECONDS, VMEM_SHARE, Chip

SIZES = (128, 256, 512, 1024)
MOST_ROWS = 4096  # a block's queries, times the query heads of a group
SCORES = 2**18  # that are computed at once, which bounds how long a kernel's program is
SCORE_ARRAYS = 5  # of those, in float32, that are alive together in the backward pass
SPILL_SHARE, SPILL_BYTES = 0.25, 2**20  # granted beyond what is counted: registers that spill, the compiler's


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows B of T positions, G key/value heads with `heads` query heads each, widths A and C."""

    B: int
    T: int
    G: int
    heads: int
    A: int
    C: int
    window: int | None
    operand_bytes: int


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Positions in a block of queries and in a block of keys."""

    queries: int
    keys: int

    def walks(self, T: int, window: int | None) -> list[int]:
        """How many key blocks the queries of each block see at most; T is padded already."""
        since = lambda first: 0 if window is None else max(first - window + 1, 0)
        return [
            (first + self.queries - 1) // self.keys - since(first) // self.keys + 1
            for first in range(0, T, self.queries)
        ]

    def walks_back(self, T: int, window: int | None) -> list[int]:
        """How many query blocks see the keys of each block at most."""
        until = lambda last: T - 1 if window is None else min(last + window - 1, T - 1)
        return [
            until(first + self.keys - 1) // self.queries - first // self.queries + 1
            for first in range(0, T, self.keys)
        ]

    def part(self, heads: int) -> int:
        """How many keys of a block are worked on at once."""
        fit = max(SCORES // (heads * self.queries), 16)
        return min(self.keys, 1 << fit.bit_length() - 1)

    def padded(self, T: int) -> int:
        """T as whole blocks of both kinds."""
        longer = max(self.queries, self.keys)
        return -(-T // longer) * longer


@functools.lru_cache(maxsize=1024)
def choose(problem: Problem, chip: Chip) -> Blocks:
    """The blocks of least time among those that fit; the smallest where none does."""
    every = [Blocks(*sizes) for sizes in itertools.product(SIZES, SIZES)]
    tall = lambda blocks: blocks.queries * problem.heads <= MOST_ROWS
    fits = lambda blocks: tall(blocks) and vmem(problem, blocks) <= chip.vmem * VMEM_SHARE
    return min(filter(fits, every), key=lambda blocks: seconds(problem, blocks, chip), default=every[0])


def vmem(problem: Problem, blocks: Blocks) -> int:
    """Bytes granted to each of the three kernels, by what the backward ones need."""
    rows = problem.heads * blocks.queries
    width = _lanes(problem.A) + _lanes(problem.C)
    moved = (rows + blocks.keys) * width * problem.operand_bytes  # q and d_o, k and v
    moved += max(rows, blocks.keys) * width * problem.operand_bytes  # results
    moved += 3 * 8 * rows * 4 + blocks.keys * 128 * 4  # log-sum-exp, delta, segments
    sums = max(rows, blocks.keys) * width * 4
    pieces = 3 * moved if problem.operand_bytes == 4 else 0  # float32 is cut into three of bfloat16
    scores = SCORE_ARRAYS * rows * blocks.part(problem.heads) * 4
    return int((2 * moved + sums + pieces + scores) * (1 + SPILL_SHARE)) + SPILL_BYTES


def seconds(problem: Problem, blocks: Blocks, chip: Chip) -> float:
    """Time of the forward pass by the model, when every row is one segment."""
    T = blocks.padded(problem.T)
    walks = blocks.walks(T, problem.window)
    visits, steps = sum(walks), len(walks) * max(walks)
    part = blocks.part(problem.heads)
    # the matrix unit sums over whole columns: widths for the scores, parts of the keys for what they mix
    summed = max(_lanes(problem.A), chip.mxu) + _lanes(problem.C) * max(part, chip.mxu) / part
    flops = 2 * visits * problem.heads * blocks.queries * blocks.keys * summed
    flops *= FLOAT32_PASSES if problem.operand_bytes == 4 else 1
    moved = (visits * blocks.keys + T * problem.heads) * (_lanes(problem.A) + _lanes(problem.C))
    moved *= problem.operand_bytes
    each = max(flops / chip.flops, moved / chip.bandwidth) + steps * STEP_SECONDS
    return problem.B * problem.G * each


def _lanes(width: int) -> int:
    return -(-width // 128) * 128
