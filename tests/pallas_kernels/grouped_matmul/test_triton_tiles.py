"""The model that chooses tiles on GPU, by hand and by what it must prefer."""

import pytest

from pallas_kernels.gpu_chips import CHIPS
from pallas_kernels.grouped_matmul import shapes, triton_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Problem
from pallas_kernels.grouped_matmul.triton_tiles import Tiles, Work

A100 = CHIPS["A100"]


def problem(shape, itemsize: int = 2) -> Problem:
    return Problem(shape.M, shape.K, shape.N, shape.G, itemsize, itemsize)


def test_a_core_by_hand():
    """128 x 256 in eight warps: 128 sums a thread, 192 registers with what is beside them: one program."""
    tiles = Tiles(128, 256, 64, warps=8, stages=3)
    assert triton_tiles.shared_bytes(2, tiles) == 3 * (128 + 256) * 64 * 2 == 147456
    assert triton_tiles.programs_per_core(2, tiles, A100) == 1
    assert triton_tiles.programs_per_core(2, Tiles(128, 256, 64, warps=8, stages=4), A100) == 0  # memory
    assert triton_tiles.programs_per_core(2, Tiles(128, 256, 64, warps=4, stages=2), A100) == 0  # registers


def test_seconds_by_hand():
    """One wave that is bound by what is fetched through the second-level cache, and ten steps."""
    tiles = Tiles(16, 16, 64, warps=4, stages=2)
    work = Work(programs=108, terms=640, moved=1000)
    fetched = 32 * 640 * 2 * 108 / (2.5 * A100.bandwidth)
    expected = fetched + triton_tiles.START_SECONDS + 10 * triton_tiles.STEP_SECONDS
    assert triton_tiles.seconds(work, 2, tiles, A100) == pytest.approx(expected)


def test_work_by_hand():
    of = Problem(M=256, K=64, N=512, G=3, operand_bytes=2, result_bytes=4)
    tiles = Tiles(128, 256, 64, warps=8, stages=2)
    moved = 2 * (256 * 64 + 3 * 64 * 512) + 4 * 256 * 512
    assert triton_tiles.matmul_work(of, tiles) == Work(programs=(2 + 2) * 2, terms=64, moved=moved)
    moved = 2 * 256 * (64 + 512) + 4 * 3 * 64 * 512
    assert triton_tiles.outer_work(of, tiles) == Work(programs=3 * 1 * 2, terms=86, moved=moved)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("work_of", [triton_tiles.matmul_work, triton_tiles.outer_work])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_what_is_chosen_fits(chip, work_of, itemsize):
    for shape in (*shapes.TINY, *shapes.SMALL, *shapes.PUBLISHED):
        tiles = triton_tiles.choose(work_of, problem(shape, itemsize), chip)
        assert triton_tiles.programs_per_core(itemsize, tiles, chip) >= 1
        assert min(tiles.height, tiles.width, tiles.depth) >= triton_tiles.LEAST


def test_few_rows_get_low_tiles_and_many_get_wide_ones():
    of = lambda M, G: Problem(M, 4096, 14336, G, 2, 2)
    decode = triton_tiles.choose(triton_tiles.matmul_work, of(16, 8), A100)
    train = triton_tiles.choose(triton_tiles.matmul_work, of(8192, 8), A100)
    assert decode.height == 16
    assert train.height == 128 and train.width >= 128


@pytest.mark.parametrize("shape", shapes.PUBLISHED, ids=lambda shape: shape.name)
def test_the_model_expects_much_of_the_arithmetic_rate(shape):
    flops = 2 * shape.M * shape.K * shape.N
    for work_of in (triton_tiles.matmul_work, triton_tiles.outer_work):
        tiles = triton_tiles.choose(work_of, problem(shape), A100)
        assert flops / triton_tiles.seconds(work_of(problem(shape), tiles), 2, tiles, A100) > 0.5 * A100.flops
