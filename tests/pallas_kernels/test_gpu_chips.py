"""The GPU that programs are traced for."""

from pallas_kernels.gpu_chips import ASSUMED, CHIPS, this_chip
from tests.pallas_kernels import topologies


def test_where_there_is_none_one_is_assumed():
    assert this_chip() == CHIPS[ASSUMED] and this_chip().hopper


@topologies.needs_cuda_compiler
def test_the_gpu_of_the_mesh():
    with topologies.gpu("a100"):
        assert this_chip() == CHIPS["A100"] and not this_chip().hopper
