"""The TPU kernels compiled for TPUs that are not here: Mosaic takes them, and they fit in VMEM.

Needs libtpu, `pip install 'moejax[tpu]'`; without it all of this is skipped.
"""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul import shapes, tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Tiles

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'moejax[tpu]'"
)

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
VMEM = {"v5e": 128 * 2**20, "v5p": 64 * 2**20, "v6e": 128 * 2**20}
FOR_EVERY_CHANGE = {"odd", "deepseek_v3"}
MODEST = (*shapes.TINY, *shapes.SMALL, *shapes.MANY_EXPERTS)
MIXTRAL = shapes.PUBLISHED[0]
generations = pytest.mark.parametrize("generation", TOPOLOGIES)


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


@pytest.fixture
def mesh(generation, monkeypatch):
    """One core of a TPU that does not exist, as the mesh for which programs are traced and compiled."""
    here = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in (here | {"TPU_ACCELERATOR_TYPE": "v5litepod-4"}).items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[generation]).devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("one",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield mesh


def compiled(mesh, shape, product: str, dtype):
    """The program of one product, by the implementation that is the default."""
    M, K, N, G = shape.M, shape.K, shape.N, shape.G
    dims, run = {
        "forward": (((M, K), (G, K, N)), grouped_matmul),
        "dlhs": (((M, N), (G, K, N)), lambda *args: grouped_matmul(*args, transpose_rhs=True)),
        "drhs": (((M, K), (M, N)), grouped_outer),
    }[product]
    here = NamedSharding(mesh, P())
    operands = (jax.ShapeDtypeStruct(dim, dtype, sharding=here) for dim in dims)
    sizes = jax.ShapeDtypeStruct((G,), jnp.int32, sharding=here)
    anew = lambda *args: run(*args)  # so that nothing is taken from what another test has traced
    return jax.jit(anew).lower(*operands, sizes).compile()


def vmem_of_kernel(program) -> int:
    """Bytes of VMEM in use while the kernel runs, as the compiler counted them."""
    (call,) = (
        line for line in program.as_text().splitlines() if 'custom_call_target="tpu_custom_call"' in line
    )
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
    return int(re.search(used, call).group(1))


@generations
@pytest.mark.parametrize("shape", rows((*MODEST, *shapes.PUBLISHED)))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_compiles_in_bfloat16(mesh, generation, shape, product):
    program = compiled(mesh, shape, product, jnp.bfloat16)
    assert vmem_of_kernel(program) <= tpu_tiles.VMEM_SHARE * VMEM[generation]
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20  # no operand is copied


@generations
@pytest.mark.parametrize("shape", rows(MODEST))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_compiles_in_float32(mesh, generation, shape, product):
    assert vmem_of_kernel(compiled(mesh, shape, product, jnp.float32)) <= VMEM[generation]


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
