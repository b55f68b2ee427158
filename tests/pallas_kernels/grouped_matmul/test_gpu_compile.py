"""The Hopper kernels compiled down to machine code for an H100 that is not here, without spills."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul import gpu, gpu_tiles, shapes
from pallas_kernels.grouped_matmul.gpu_tiles import Tiles
from tests.pallas_kernels import topologies

pytestmark = topologies.needs_cuda_compiler

FOR_EVERY_CHANGE = {"qwen3_30b_a3b"}
MIXTRAL = shapes.PUBLISHED[0]
REGISTERS = 65536 // (128 * (gpu.MULTIPLYING + 1)) // 8 * 8  # each, before the warp groups trade them
products = pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


def operands(shape, product: str):
    """The product and its operands."""
    M, K, N, G = shape.M, shape.K, shape.N, shape.G
    dims, run = {
        "forward": (((M, K), (G, K, N)), grouped_matmul),
        "dlhs": (((M, N), (G, K, N)), lambda *args, **how: grouped_matmul(*args, transpose_rhs=True, **how)),
        "drhs": (((M, K), (M, N)), grouped_outer),
    }[product]
    return run, *((dim, jnp.bfloat16) for dim in dims), ((G,), jnp.int32)


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    with topologies.gpu("h100") as mesh:
        yield mesh


@pytest.mark.parametrize("shape", rows((*shapes.SMALL, *shapes.MANY_EXPERTS, *shapes.PUBLISHED)))
@products
def test_compiles(mesh, shape, product, capfd):
    program = topologies.compiled(mesh, *operands(shape, product))
    assert program.as_text().count('custom_call_target="mosaic_gpu') == 1  # the default, by itself
    text = "".join(capfd.readouterr())
    assert topologies.ptxas(text) == [{"spilled": 0, "registers": REGISTERS}]
    assert "serialized" not in text and "setmaxnreg ignored" not in text
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20  # no operand is copied


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@products
def test_compiles_with_other_results(mesh, product, dtype, capfd):
    run, *rest = operands(MIXTRAL, product)
    topologies.compiled(mesh, lambda *args: run(*args, preferred_element_type=dtype), *rest)
    (used,) = topologies.ptxas("".join(capfd.readouterr()))
    assert used["spilled"] == 0


def test_more_shared_memory_than_there_is_fails(mesh, monkeypatch):
    monkeypatch.setattr(gpu_tiles, "choose", lambda *_: Tiles(256, stages=5, places=2))
    with pytest.raises(ValueError, match=r"(?i)shared memory"):
        topologies.compiled(mesh, *operands(MIXTRAL, "forward"))


@products
def test_lowers_for_export(product):
    run, *rest = operands(shapes.SMALL[0], product)
    exported = jax.export.export(
        jax.jit(lambda *args: run(*args, implementation="hopper")),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )
    module = exported(*(jax.ShapeDtypeStruct(*x) for x in rest)).mlir_module()
    assert module.count("mosaic_gpu") >= 1
