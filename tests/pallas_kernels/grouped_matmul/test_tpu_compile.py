"""The TPU kernels compiled for TPUs that are not here: Mosaic takes them, and they fit in VMEM."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul import shapes, tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Tiles
from pallas_kernels.tpu_chips import VMEM_SHARE
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

pytestmark = topologies.needs_libtpu

FOR_EVERY_CHANGE = {"odd", "deepseek_v3"}
MODEST = (*shapes.TINY, *shapes.SMALL, *shapes.MANY_EXPERTS)
MIXTRAL = shapes.PUBLISHED[0]


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


@pytest.fixture
def mesh(generation):
    with topologies.tpu(generation) as mesh:
        yield mesh


def compiled(mesh, shape, product: str, dtype):
    """The program of one product, by the implementation that is the default."""
    M, K, N, G = shape.M, shape.K, shape.N, shape.G
    dims, run = {
        "forward": (((M, K), (G, K, N)), grouped_matmul),
        "dlhs": (((M, N), (G, K, N)), lambda *args: grouped_matmul(*args, transpose_rhs=True)),
        "drhs": (((M, K), (M, N)), grouped_outer),
    }[product]
    return topologies.compiled(mesh, run, *((dim, dtype) for dim in dims), ((G,), jnp.int32))


@generations
@pytest.mark.parametrize("shape", rows((*MODEST, *shapes.PUBLISHED)))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_compiles_in_bfloat16(mesh, generation, shape, product):
    program = compiled(mesh, shape, product, jnp.bfloat16)
    (vmem,) = vmem_of_kernels(program)
    assert vmem <= VMEM_SHARE * VMEM[generation]
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20  # no operand is copied


@generations
@pytest.mark.parametrize("shape", rows(MODEST))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_compiles_in_float32(mesh, generation, shape, product):
    (vmem,) = vmem_of_kernels(compiled(mesh, shape, product, jnp.float32))
    assert vmem <= VMEM[generation]


@pytest.mark.parametrize("generation", ["v6e"])
def test_blocks_that_do_not_fit_are_refused(mesh, generation, monkeypatch):
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: Tiles(512, MIXTRAL.K, MIXTRAL.N))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(mesh, MIXTRAL, "forward", jnp.bfloat16)


@pytest.mark.parametrize("generation", ["v6e"])
def test_more_vmem_than_was_granted_is_refused(mesh, generation, monkeypatch):
    """The model of VMEM is held to what the compiler counts: too low an estimate fails to compile."""
    stingy = tpu_tiles.MATMUL._replace(vmem=lambda problem, tiles: tpu_tiles.matmul_vmem(problem, tiles) // 2)
    monkeypatch.setattr(tpu_tiles, "MATMUL", stingy)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(mesh, MIXTRAL, "forward", jnp.bfloat16)


@pytest.mark.parametrize("generation", ["v6e"])
def test_unaligned_blocks_are_refused(mesh, generation, monkeypatch):
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: Tiles(100, 100, 100))
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compiled(mesh, MIXTRAL, "forward", jnp.bfloat16)
