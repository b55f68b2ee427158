"""The model of time and memory that chooses tiles."""

import dataclasses

import pytest

from pallas_kernels.grouped_matmul import shapes, tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import MATMUL, OUTER, Problem, Tiles
from pallas_kernels.tpu_chips import VMEM_SHARE, Chip

CHIP = Chip(flops=200e12, bandwidth=800e9, vmem=64 * 2**20, mxu=128)


def problem(shape: shapes.GroupedShape, operand_bytes: int = 2) -> Problem:
    return Problem(shape.M, shape.K, shape.N, shape.G, operand_bytes, operand_bytes)


def test_seconds_by_hand():
    """Four tiles of 256 rows and one shared by two groups: five visits of 2 * 256 * 512 * 1024 operations."""
    of = Problem(M=1024, K=512, N=2048, G=2, operand_bytes=2, result_bytes=2)
    arithmetic = 5 * 2 * 2 * 256 * 512 * 1024 / 200e12
    assert tpu_tiles.matmul_seconds(of, Tiles(256, 512, 1024), CHIP) == pytest.approx(
        arithmetic + 10 * 0.35e-6
    )
    # rows are fetched for each of two tiles of N, either matrix once
    moved = 2 * (2 * 1024 * 512 + 2 * 512 * 2048 + 1024 * 2048)
    slow = dataclasses.replace(CHIP, bandwidth=1e9)
    seconds = tpu_tiles.matmul_seconds(of, Tiles(256, 512, 1024), slow)
    assert seconds == pytest.approx(moved / 1e9 + 10 * 0.35e-6)
    # with K in two tiles every visit fetches all of its rows and its matrix again
    moved = 2 * (2 * 5 * 256 * 512 + 5 * 512 * 2048 + 1024 * 2048)
    seconds = tpu_tiles.matmul_seconds(of, Tiles(256, 256, 1024), slow)
    assert seconds == pytest.approx(moved / 1e9 + 20 * 0.35e-6)


def test_vmem_by_hand():
    of = Problem(M=1024, K=512, N=2048, G=2, operand_bytes=2, result_bytes=2)
    blocks, sums = 2 * (2 * 256 * 512 + 2 * 512 * 1024 + 2 * 256 * 1024), 4 * 256 * 1024
    assert tpu_tiles.matmul_vmem(of, Tiles(256, 512, 1024)) == int(1.25 * (blocks + sums)) + 2**20


@pytest.mark.parametrize("op", [MATMUL, OUTER], ids=["matmul", "outer"])
@pytest.mark.parametrize("shape", (*shapes.TINY, *shapes.SMALL, *shapes.PUBLISHED), ids=lambda s: s.name)
def test_tiles_fit_and_are_legal(shape, op):
    for operand_bytes in (2, 4):
        of = problem(shape, operand_bytes)
        tiles = tpu_tiles.choose(op, of, CHIP)
        assert op.vmem(of, tiles) <= CHIP.vmem * VMEM_SHARE
        for size, dim, align in ((tiles.m, of.M, 8), (tiles.k, of.K, 128), (tiles.n, of.N, 128)):
            assert size == dim or (size < dim and size % align == 0)


def test_short_groups_get_low_tiles():
    """512 rows per group: higher tiles than 128 would compute more rows of neighbours than own."""
    deepseek = next(shape for shape in shapes.PUBLISHED if shape.name == "deepseek_v3")
    assert tpu_tiles.choose(MATMUL, problem(deepseek), CHIP).m == 128
    one_group = dataclasses.replace(deepseek, G=1)
    assert tpu_tiles.choose(MATMUL, problem(one_group), CHIP).m > 128


def test_less_vmem_means_smaller_tiles():
    mixtral = problem(shapes.PUBLISHED[0])
    small = dataclasses.replace(CHIP, vmem=16 * 2**20)
    seconds = [
        MATMUL.seconds(mixtral, tpu_tiles.choose(MATMUL, mixtral, chip), CHIP) for chip in (small, CHIP)
    ]
    assert MATMUL.vmem(mixtral, tpu_tiles.choose(MATMUL, mixtral, small)) <= 12 * 2**20
    assert seconds[0] > seconds[1]
