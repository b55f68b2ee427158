"""How large the tiles of a grouped product on GPU are: the cheapest by a model of time that fit in a core.

A product is a number of programs, each of which adds up one tile of the result. They run in waves, as many
at once as the cores hold. A wave takes the longest of three times, and a little for every start and step:

- arithmetic of whole tiles, so that pieces of few rows waste less in low tiles;
- what the cores fetch through the second-level cache: square tiles fetch least for their arithmetic;
- its share of the traffic with the main memory, where everything is fetched once if neighbours share it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from pallas_kernels.gpu_chips import Chip
from pallas_kernels.grouped_matmul.tpu_tiles import Problem

LEAST = 16  # a dot takes powers of two from here on
MOST_HEIGHT, MOST_WIDTH = 128, 256
STEP_BYTES = (64, 128)  # of a row of an operand, in a step
STAGES, WARPS = (4, 3), (4, 8)
START_SECONDS, STEP_SECONDS = 2e-6, 0.05e-6
L2_SPEED = 2.5  # of the main memory's
# of arithmetic, by bytes of an operand; float32 is not rounded, so that the tensor cores do not serve
SLOWNESS = {1: 0.5, 2: 1, 4: 16}
REGISTERS, THREADS_OF_WARP = 2**16, 32
REGISTERS_BESIDE_SUMS = 64  # of a thread
# of a thread, by bytes of an operand: blocks of others pass through registers
MOST_SUMS = {1: 64, 2: 128, 4: 64}


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A program adds up a height x width tile of the result, so many terms in a step."""

    height: int
    width: int
    depth: int
    warps: int
    stages: int  # blocks of the operands that are there at once: one in use, the others on their way


@dataclasses.dataclass(frozen=True)
class Work:
    """Programs, terms that each of them adds up, bytes between the main memory and the chip."""

    programs: int
    terms: int
    moved: int


def matmul_work(of: Problem, tiles: Tiles) -> Work:
    """What `triton.matmul` does, when group boundaries lie anywhere."""
    pieces = of.M // tiles.height + (min(of.G, of.M) + 1) // 2
    moved = (of.M * of.K + of.G * of.K * of.N) * of.operand_bytes + of.M * of.N * of.result_bytes
    return Work(pieces * _count(of.N, tiles.width), of.K, moved)


def outer_work(of: Problem, tiles: Tiles) -> Work:
    """What `triton.outer` does, when all groups are equal."""
    programs = of.G * _count(of.K, tiles.height) * _count(of.N, tiles.width)
    moved = of.M * (of.K + of.N) * of.operand_bytes + of.G * of.K * of.N * of.result_bytes
    return Work(programs, _count(of.M, of.G), moved)


def seconds(work: Work, operand_bytes: int, tiles: Tiles, chip: Chip) -> float:
    """Time of a product by the model."""
    waves = _count(work.programs, chip.cores * programs_per_core(operand_bytes, tiles, chip))
    at_once = work.programs / waves
    steps = _count(work.terms, tiles.depth)
    flops = 2 * tiles.height * tiles.width * steps * tiles.depth * SLOWNESS[operand_bytes]
    fetched = (tiles.height + tiles.width) * steps * tiles.depth * operand_bytes
    longest = max(
        flops * at_once / chip.flops,
        fetched * at_once / (L2_SPEED * chip.bandwidth),
        work.moved / waves / chip.bandwidth,
    )
    return waves * (longest + START_SECONDS + steps * STEP_SECONDS)


def shared_bytes(operand_bytes: int, tiles: Tiles) -> int:
    """Shared memory of a program."""
    return tiles.stages * (tiles.height + tiles.width) * tiles.depth * operand_bytes


def programs_per_core(operand_bytes: int, tiles: Tiles, chip: Chip) -> int:
    """How many programs a core holds at once; none where one does not fit."""
    threads = tiles.warps * THREADS_OF_WARP
    sums = tiles.height * tiles.width // threads
    if sums > MOST_SUMS[operand_bytes]:
        return 0
    by_registers = REGISTERS // (threads * (sums + REGISTERS_BESIDE_SUMS))
    return min(by_registers, chip.smem // shared_bytes(operand_bytes, tiles))


@functools.lru_cache(maxsize=1024)
def choose(work_of: Callable[[Problem, Tiles], Work], of: Problem, chip: Chip) -> Tiles:
    """The tiles of least time among those that fit; where several are, those of the most stages."""
    down = of.K if work_of is outer_work else of.M
    every = [
        Tiles(height, width, step // of.operand_bytes, warps, stages)
        for height, width, step, warps, stages in itertools.product(
            _sizes(down, MOST_HEIGHT), _sizes(of.N, MOST_WIDTH), STEP_BYTES, WARPS, STAGES
        )
    ]
    fits = lambda tiles: programs_per_core(of.operand_bytes, tiles, chip) > 0
    cost = lambda tiles: seconds(work_of(of, tiles), of.operand_bytes, tiles, chip)
    return min(filter(fits, every), key=cost)


def span(tiles: Tiles, chip: Chip) -> int:
    """Tiles of the result that lie under each other in a band, so that what runs at once shares most."""
    return max(round((chip.cores * tiles.width / tiles.height) ** 0.5), 1)


def _sizes(dim: int, most: int) -> list[int]:
    """Powers of two up to the one that holds the whole dim."""
    whole = max(1 << (dim - 1).bit_length(), LEAST)
    return [LEAST * 2**i for i in range((min(whole, most) // LEAST).bit_length())]


def _count(size: int, of: int) -> int:
    return -(-size // of)
