"""The kernels compiled for accelerators that are not here, at the sizes of published models."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import union_experts
from pallas_kernels.union_experts import shapes, tpu, triton
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

FOR_EVERY_CHANGE = {"blockffn_1200m", "mixtral_8x7b"}
BLOCKFFN = shapes.PUBLISHED[1]
dtypes = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.nightly)]
)
# Where the compiler stores matrices narrower than a vector the other way round, and turns one of them.
COPIED = {("v5p", "blockffn_100m")}


def rows(every_change=FOR_EVERY_CHANGE) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in every_change else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in shapes.PUBLISHED]


def union(x, weight, up, down, *gate):
    return union_experts(x, weight, up, down, gate_EDF=gate[0] if gate else None)


def operands(shape, dtype):
    return [(dims, dtype) for dims in shape.dims]


@topologies.needs_libtpu
@generations
@dtypes
@pytest.mark.parametrize("shape", rows())
def test_compiles_for_tpu(generation, shape, dtype):
    with topologies.tpu(generation) as mesh:
        program = topologies.compiled(mesh, union, *operands(shape, dtype))
    (vmem,) = vmem_of_kernels(program)
    assert vmem <= 0.75 * VMEM[generation]
    copied = 0  # no weight is
    if (generation, shape.name) in COPIED:
        copied = shape.E * shape.D * max(shape.F, 128) * jnp.dtype(dtype).itemsize
    assert program.memory_analysis().temp_size_in_bytes < 2**20 + copied


@topologies.needs_libtpu
def test_more_vmem_than_was_granted_is_refused(monkeypatch):
    """The model of VMEM is held to what the compiler counts: too low an estimate fails to compile."""
    monkeypatch.setattr(tpu, "vmem", lambda *sizes: 2**20)
    with topologies.tpu("v6e") as mesh, pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        topologies.compiled(mesh, union, *operands(BLOCKFFN, jnp.bfloat16))


@topologies.needs_cuda_compiler
@pytest.mark.parametrize("gpu", ["a100", "h100"])
@dtypes
@pytest.mark.parametrize("shape", rows({"blockffn_1200m"}))
def test_compiles_for_gpu_and_nothing_spills(gpu, shape, dtype):
    run = lambda x, weight, up, down, *gate: union_experts(
        x, weight, up, down, gate_EDF=gate[0] if gate else None, implementation="triton"
    )
    with topologies.gpu(gpu) as mesh:
        kernels = topologies.ptx_kernels(gpu, mesh, run, *operands(shape, dtype))
    assert sorted(kernel.name for kernel in kernels) == ["union_down", "union_hidden"]
    assert all(kernel.used["spilled"] == 0 for kernel in kernels)
    assert all("mma" in kernel.text.replace("fma", "") for kernel in kernels if dtype == jnp.bfloat16)


@topologies.needs_cuda_compiler
def test_blocks_that_are_no_power_of_two_are_refused(monkeypatch):
    monkeypatch.setattr(triton, "WIDTH", 48)
    run = functools.partial(triton.apply, activation="silu")
    with topologies.gpu("a100") as mesh, pytest.raises(ValueError, match="power of 2"):
        topologies.compiled(mesh, run, *operands(BLOCKFFN, jnp.bfloat16))


def test_lowers_for_cuda_on_a_machine_without_gpu():
    args = [jax.ShapeDtypeStruct(dims, jnp.bfloat16) for dims in BLOCKFFN.dims]
    with jax.sharding.use_abstract_mesh(topologies.abstract_gpus("a100")):
        exported = topologies.exported(union, *args)
    assert exported.mlir_module().count("xla.gpu.triton") == 2
