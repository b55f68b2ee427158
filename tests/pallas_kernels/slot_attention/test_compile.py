"""The kernels compiled for accelerators that are not here, at the sizes of published models."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import PartitionSpec as P

from pallas_kernels import slot_attention
from pallas_kernels.slot_attention import shapes, tpu, triton
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, vmem_of_kernels

FOR_EVERY_CHANGE = {
    ("v5e", "gpt_oss_120b"),
    ("v5p", "qwen3_30b_a3b"),
    ("v6e", "mixtral_8x7b_page_16"),
    ("a100", "gpt_oss_120b"),
    ("h100", "mixtral_8x7b_page_16"),
}
MIXTRAL, SMOLLM = shapes.PUBLISHED[0], shapes.PUBLISHED[-1]
dtypes = pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.nightly)]
)


def rows(chips) -> list:
    """A parameter per chip and shape; most are for the night."""
    marks = lambda *case: () if case in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [
        pytest.param(chip, shape, marks=marks(chip, shape.name), id=f"{chip}-{shape.name}")
        for chip in chips
        for shape in shapes.PUBLISHED
    ]


def operands(shape, dtype):
    return list(zip(shape.dims, (dtype,) * 3 + (jnp.int32,) * 3, strict=True))


def row_major(mesh, shape, dtype):
    """The operands, laid out as the kernel reads them."""
    here = jax.NamedSharding(mesh, P())
    layout = lambda dims: Format(Layout(tuple(range(len(dims)))), here)
    return [jax.ShapeDtypeStruct(dims, of, sharding=layout(dims)) for dims, of in operands(shape, dtype)]


@topologies.needs_libtpu
@dtypes
@pytest.mark.parametrize(("generation", "shape"), rows(topologies.TPUS))
def test_compiles_for_tpu(generation, shape, dtype):
    with topologies.tpu(generation) as mesh:
        op = jax.jit(functools.partial(slot_attention, window=shape.window))
        program = op.lower(*row_major(mesh, shape, dtype)).compile()
    (vmem,) = vmem_of_kernels(program)
    assert vmem <= 0.75 * VMEM[generation]
    pages = math.prod(shape.dims[1]) * jnp.dtype(dtype).itemsize
    assert program.memory_analysis().temp_size_in_bytes < pages / 4  # they are not copied


@topologies.needs_libtpu
def test_more_vmem_than_was_granted_is_refused(monkeypatch):
    """The model of VMEM is held to what the compiler counts: too low an estimate fails to compile."""
    monkeypatch.setattr(tpu, "vmem", lambda *sizes: 2**20)
    with topologies.tpu("v6e") as mesh, pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        topologies.compiled(mesh, slot_attention, *operands(SMOLLM, jnp.bfloat16))


@topologies.needs_cuda_compiler
@dtypes
@pytest.mark.parametrize(("gpu", "shape"), rows(topologies.GPUS))
def test_compiles_for_gpu_and_nothing_spills(gpu, shape, dtype):
    op = functools.partial(slot_attention, window=shape.window, implementation="triton")
    with topologies.gpu(gpu) as mesh:
        (kernel,) = topologies.ptx_kernels(gpu, mesh, op, *operands(shape, dtype))
    assert kernel.used["spilled"] == 0
    assert dtype == jnp.float32 or "mma" in kernel.text.replace("fma", "")


@topologies.needs_cuda_compiler
def test_blocks_that_are_no_power_of_two_are_refused(monkeypatch):
    monkeypatch.setattr(triton, "BLOCK_KEYS", {2: 48})
    op = functools.partial(slot_attention, implementation="triton")
    with topologies.gpu("a100") as mesh, pytest.raises(ValueError, match="power of 2"):
        topologies.compiled(mesh, op, *operands(MIXTRAL, jnp.bfloat16))


def test_lowers_for_cuda_where_devices_hold_different_heads():
    mesh = topologies.abstract_gpus("a100", count=8)
    specs = (P(None, "row"), P(None, "row"), P(None, "row"), P(), P(), P())
    op = jax.shard_map(slot_attention, in_specs=specs, out_specs=P(None, "row"), check_vma=True)
    args = [
        jax.ShapeDtypeStruct(dims, dtype, sharding=jax.NamedSharding(mesh, spec))
        for (dims, dtype), spec in zip(operands(MIXTRAL, jnp.bfloat16), specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh):
        exported = topologies.exported(op, *args)
    assert exported.mlir_module().count("xla.gpu.triton") == 1
