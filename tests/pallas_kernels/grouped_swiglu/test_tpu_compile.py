"""The TPU kernel compiled for TPUs that are not here: Mosaic takes it, and it fits in VMEM."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_swiglu
from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Tiles
from pallas_kernels.grouped_swiglu import shapes, tpu
from pallas_kernels.grouped_swiglu.tpu_tiles import SWIGLU
from pallas_kernels.tpu_chips import VMEM_SHARE
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

pytestmark = topologies.needs_libtpu

FOR_EVERY_CHANGE = {"many_experts"}
DEEPSEEK = shapes.PUBLISHED[-1]


@pytest.fixture
def mesh(generation):
    with topologies.tpu(generation) as mesh:
        yield mesh


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


def compiled(mesh, shape, dtype, run=grouped_swiglu):
    """The program for tokens in slots."""

    def with_slots(x_ND, gate_GDF, up_GDF, size_G, *slots):
        return run(x_ND, gate_GDF, up_GDF, size_G, slots=slots)

    N, K, D, F, G = (getattr(shape, name) for name in "NKDFG")
    matrices = ((G, D, F), dtype)
    ints = ((G,), jnp.int32), ((N * K,), jnp.int32), ((N, K), jnp.int32)
    return topologies.compiled(mesh, with_slots, ((N, D), dtype), matrices, matrices, *ints)


def with_gradients(x_ND, gate_GDF, up_GDF, size_G, slots):
    run = functools.partial(grouped_swiglu, group_sizes_G=size_G, slots=slots)
    h_RF, pull = jax.vjp(lambda *floats: run(*floats), x_ND, gate_GDF, up_GDF)
    return h_RF, pull(h_RF)


@generations
@pytest.mark.parametrize("shape", rows((*shapes.SMALL, *shapes.PUBLISHED[:-1])))
def test_compiles_in_bfloat16(mesh, generation, shape):
    gather, products = vmem_of_kernels(compiled(mesh, shape, jnp.bfloat16))
    assert max(gather, products) <= VMEM_SHARE * VMEM[generation]


@pytest.mark.nightly
@pytest.mark.parametrize("generation", ["v5p"])  # the matrices are more than others have
def test_compiles_at_the_size_of_deepseek(mesh, generation):
    assert max(vmem_of_kernels(compiled(mesh, DEEPSEEK, jnp.bfloat16))) <= VMEM[generation]


@pytest.mark.nightly
@generations
@pytest.mark.parametrize("shape", rows((*shapes.TINY, shapes.SMALL[0])))
def test_compiles_in_float32(mesh, generation, shape):
    assert max(vmem_of_kernels(compiled(mesh, shape, jnp.float32))) <= VMEM[generation]


@pytest.mark.nightly
@generations
def test_gradients_compile(mesh, generation):
    """Gathered twice; one kernel forward, four products and the sum over slots backward."""
    assert len(vmem_of_kernels(compiled(mesh, shapes.SMALL[0], jnp.bfloat16, with_gradients))) == 8


@pytest.mark.parametrize("generation", ["v6e"])
def test_more_vmem_than_was_granted_is_refused(mesh, generation, monkeypatch):
    """The model of VMEM is held to what the compiler counts."""
    stingy = SWIGLU._replace(vmem=lambda problem, tiles: SWIGLU.vmem(problem, tiles) // 3)
    monkeypatch.setattr(tpu, "SWIGLU", stingy)
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: Tiles(256, 512, 1024))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(mesh, shapes.SMALL[0], jnp.bfloat16)


@pytest.mark.parametrize("generation", ["v6e"])
def test_unaligned_blocks_are_refused(mesh, generation, monkeypatch):
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: Tiles(100, 100, 100))
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compiled(mesh, shapes.SMALL[0], jnp.bfloat16)
