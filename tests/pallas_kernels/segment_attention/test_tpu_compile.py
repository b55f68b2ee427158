"""The TPU kernels compiled for TPUs that are not here: Mosaic takes them, and they fit in VMEM."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import segment_attention
from pallas_kernels.segment_attention import shapes, tpu_blocks
from pallas_kernels.segment_attention.tpu_blocks import Blocks
from pallas_kernels.tpu_chips import VMEM_SHARE
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

pytestmark = topologies.needs_libtpu

FOR_EVERY_CHANGE = {"gpt_oss_window"}
(WINDOW,) = (shape for shape in shapes.PUBLISHED if shape.window)


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


@pytest.fixture
def mesh(generation):
    with topologies.tpu(generation) as mesh:
        yield mesh


def compiled(mesh, shape, dtype):
    """The program of value and gradients, by the implementation that is the default."""

    def run(q, k, v, segment_BT, d_o):
        op = lambda *qkv: segment_attention(*qkv, segment_BT, window=shape.window)
        o, backward = jax.vjp(op, q, k, v)
        return o, *backward(d_o)

    B, T, H, G, A, C = shape.B, shape.T, shape.H, shape.G, shape.A, shape.value_width
    dims = ((B, T, H, A), (B, T, G, A), (B, T, G, C), (B, T), (B, T, H, C))
    types = (dtype, dtype, dtype, jnp.int32, dtype)
    return topologies.compiled(mesh, run, *zip(dims, types, strict=True))


@generations
@pytest.mark.parametrize("shape", rows((*shapes.TINY, *shapes.SMALL, *shapes.PUBLISHED)))
def test_compiles_in_bfloat16(mesh, generation, shape):
    program = compiled(mesh, shape, jnp.bfloat16)
    used = vmem_of_kernels(program)
    assert len(used) == 3
    assert max(used) <= VMEM_SHARE * VMEM[generation]
    memory = program.memory_analysis()
    # transposed copies, of lanes that narrow heads do not fill; never scores
    assert memory.temp_size_in_bytes < 4 * memory.argument_size_in_bytes + 16 * 2**20


@pytest.mark.nightly
@generations
@pytest.mark.parametrize(
    "shape", (*shapes.TINY, *shapes.SMALL, *shapes.PUBLISHED), ids=lambda shape: shape.name
)
def test_compiles_in_float32(mesh, generation, shape):
    assert max(vmem_of_kernels(compiled(mesh, shape, jnp.float32))) <= VMEM[generation]


@pytest.mark.parametrize("generation", ["v6e"])
def test_more_vmem_than_was_granted_is_refused(mesh, generation, monkeypatch):
    """The model of VMEM is held to what the compiler counts: too low an estimate fails to compile."""
    monkeypatch.setattr(tpu_blocks, "vmem", lambda problem, blocks: 2**20)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(mesh, WINDOW, jnp.bfloat16)


@pytest.mark.parametrize("generation", ["v6e"])
def test_unaligned_blocks_are_refused(mesh, generation, monkeypatch):
    monkeypatch.setattr(tpu_blocks, "choose", lambda *_: Blocks(100, 100))
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compiled(mesh, WINDOW, jnp.bfloat16)
