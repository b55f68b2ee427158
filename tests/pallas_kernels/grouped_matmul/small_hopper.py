"""A model of a Hopper GPU that is small enough to run grouped products in tests."""

import contextlib
import dataclasses

import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_chips import CHIPS
from pallas_kernels.grouped_matmul import gpu, gpu_tiles
from tests.pallas_kernels import hopper


@contextlib.contextmanager
def small_hopper(n: int = 128):
    """Two cores, so that each has several work items, and tiles of the result `n` wide."""
    with pytest.MonkeyPatch.context() as patch, hopper.mosaic_kernels():
        patch.setattr(plgpu, "RefUnion", lambda *refs: refs)  # the model puts them side by side
        patch.setattr(gpu, "this_chip", lambda: dataclasses.replace(CHIPS["H100"], cores=2))
        patch.setattr(gpu_tiles, "choose", lambda *_: gpu_tiles.Tiles(n, stages=3, places=2))
        yield
