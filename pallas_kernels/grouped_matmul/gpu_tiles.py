"""How large the tiles of a grouped product on Hopper are: the cheapest by a model of time that fit."""

import dataclasses
import functools
import itertools

from pallas_kernels.gpu_chips import Chip

PART = 64  # rows that a warp group multiplies at once, and the depth of a step
L2_BANDWIDTH = (
    7e12  # bytes per second to all cores; a dense product of these tiles is known to draw that much
)
DRAIN_SECONDS, PLACE_SECONDS = 0.3e-6, 0.25e-6
LATENCY_SECONDS = 1.2e-6  # from asking for a part of an operand to having it
BARRIERS = 1024  # bytes, generously


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What a block has in shared memory."""

    n: int  # columns of the result
    stages: int  # steps whose operands are there or on their way
    places: int  # parts of the result on their way out, for each half

    m = 2 * PART  # rows of the result

    def smem(self) -> int:
        """Bytes of shared memory."""
        step = (self.m + self.n) * PART * 2
        return self.stages * step + 2 * self.places * PART * 128 + BARRIERS


def chunk(itemsize: int) -> int:
    """Columns of the result that are stored at once: 128 bytes."""
    return 128 // itemsize


@functools.lru_cache(maxsize=256)
def choose(N: int, steps: int, itemsize: int, chip: Chip) -> Tiles:
    """The tiles of least time for a row of tiles across a result `N` wide, among those that fit."""
    every = (Tiles(*sizes) for sizes in itertools.product((256, 128, 64), range(8, 1, -1), (2, 4)))
    fits = [tiles for tiles in every if tiles.smem() <= chip.smem and tiles.n % chunk(itemsize) == 0]
    return min(fits, key=lambda tiles: -(-N // tiles.n) * item_seconds(tiles, steps, itemsize, chip))


def item_seconds(tiles: Tiles, steps: int, itemsize: int, chip: Chip) -> float:
    """Time of one tile of the result by the model."""
    step = step_seconds(tiles, chip)
    starved = max(0.0, LATENCY_SECONDS - (tiles.stages - 1) * step) / tiles.stages
    chunks = tiles.n // chunk(itemsize)
    return steps * (step + starved) + DRAIN_SECONDS + max(0, chunks - tiles.places) * PLACE_SECONDS


def step_seconds(tiles: Tiles, chip: Chip) -> float:
    """Time of one step: the larger of arithmetic and what comes from the L2 cache."""
    arithmetic = 2 * tiles.m * tiles.n * PART / (chip.flops / chip.cores)
    return max(arithmetic, (tiles.m + tiles.n) * PART * 2 / (L2_BANDWIDTH / chip.cores))
