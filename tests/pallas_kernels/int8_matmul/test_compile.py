"""The kernels for products of 8-bit integers, compiled for accelerators that are not here."""

import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import int8_matmul
from pallas_kernels.grouped_matmul import triton_tiles
from pallas_kernels.grouped_matmul.triton_tiles import Tiles
from pallas_kernels.int8_matmul import shapes, tpu
from tests.pallas_kernels import topologies

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
FOR_EVERY_CHANGE = {"odd", "deepseek_v3_prefill"}
DEEPSEEK = shapes.PUBLISHED[1]
every_shape = pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            shape, id=shape.name, marks=() if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
        )
        for shape in (*shapes.TINY, *shapes.PUBLISHED)
    ],
)


def operands(shape):
    M, K, N = shape.M, shape.K, shape.N
    return ((M, K), jnp.int8), ((K, N), jnp.int8), ((M,), jnp.float32), ((N,), jnp.float32)


@topologies.needs_libtpu
@topologies.generations
@every_shape
def test_compiles_for_tpu(generation, shape):
    with topologies.tpu(generation) as mesh:
        program = topologies.compiled(mesh, int8_matmul, *operands(shape))
    (vmem,) = topologies.vmem_of_kernels(program)
    assert vmem <= topologies.VMEM[generation] // 2


@topologies.needs_libtpu
def test_unaligned_blocks_are_refused_for_tpu(monkeypatch):
    monkeypatch.setattr(tpu, "MOST", (100, 100, 100))
    with topologies.tpu("v6e") as mesh, pytest.raises(ValueError, match="divisible by"):
        topologies.compiled(mesh, int8_matmul, *operands(DEEPSEEK))


@topologies.needs_cuda_compiler
@pytest.mark.parametrize("gpu", topologies.GPUS)
@every_shape
def test_compiles_for_gpu(gpu, shape):
    with topologies.gpu(gpu) as mesh:
        run = lambda *args: int8_matmul(*args, implementation="triton")
        (kernel,) = topologies.ptx_kernels(gpu, mesh, run, *operands(shape))
    assert kernel.used["spilled"] == 0
    assert re.search(r"mma\S*\.s32\.s8\.s8", kernel.text)  # on the tensor cores


@topologies.needs_cuda_compiler
def test_tiles_beyond_shared_memory_are_refused(monkeypatch):
    monkeypatch.setattr(triton_tiles, "choose", lambda *_: Tiles(128, 256, 256, warps=8, stages=4))
    with topologies.gpu("a100") as mesh, pytest.raises(jax.errors.JaxRuntimeError, match=r"[Ss]hared memory"):
        topologies.compiled(mesh, int8_matmul, *operands(DEEPSEEK))


def test_an_exported_program_for_a_gpu_has_the_kernel():
    with jax.sharding.use_abstract_mesh(topologies.abstract_gpus("a100")):
        shapes_of = (jax.ShapeDtypeStruct(*operand) for operand in operands(shapes.TINY[0]))
        exported = topologies.exported(int8_matmul, *shapes_of)
    assert exported.mlir_module().count("xla.gpu.triton") == 1
