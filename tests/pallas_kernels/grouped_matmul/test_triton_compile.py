"""The portable GPU kernels compiled for GPUs that are not here, down to machine code."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, grouped_outer
from pallas_kernels.grouped_matmul import shapes, triton_tiles
from pallas_kernels.grouped_matmul.triton_tiles import Tiles
from tests.pallas_kernels import topologies

pytestmark = topologies.needs_cuda_compiler

FOR_EVERY_CHANGE = {("a100", "odd"), ("a100", "deepseek_v3"), ("h100", "mixtral_8x7b")}
MODEST = (*shapes.TINY, *shapes.SMALL, *shapes.MANY_EXPERTS)
MIXTRAL = shapes.PUBLISHED[0]
# Bytes; ptxas spills two registers of a 32 x 128 tile that it gives 96 of the 255 there are.
SPILLED = {("a100", "forward"): 8}


def rows(of) -> list:
    """A parameter per GPU and shape; most are for the night."""
    marks = lambda *case: () if case in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [
        pytest.param(gpu, shape, marks=marks(gpu, shape.name), id=f"{gpu}-{shape.name}")
        for gpu in topologies.GPUS
        for shape in of
    ]


def kernels(gpu: str, shape, product: str, dtype) -> list[topologies.PtxKernel]:
    M, K, N, G = shape.M, shape.K, shape.N, shape.G
    run = lambda op, **static: lambda *args: op(*args, implementation="triton", **static)
    dims, function = {
        "forward": (((M, K), (G, K, N)), run(grouped_matmul)),
        "dlhs": (((M, N), (G, K, N)), run(grouped_matmul, transpose_rhs=True)),
        "drhs": (((M, K), (M, N)), run(grouped_outer)),
    }[product]
    with topologies.gpu(gpu) as mesh:
        return topologies.ptx_kernels(gpu, mesh, function, *((d, dtype) for d in dims), ((G,), jnp.int32))


@pytest.mark.parametrize(("gpu", "shape"), rows((*MODEST, *shapes.PUBLISHED)))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_bfloat16_is_on_the_tensor_cores_and_nothing_spills(gpu, shape, product):
    (kernel,) = kernels(gpu, shape, product, jnp.bfloat16)
    assert kernel.used["spilled"] == 0
    if shape in shapes.TINY:
        assert "mma" in kernel.text  # 16 rows are too few for Hopper's
    else:
        assert ("wgmma.mma_async" if gpu == "h100" else "mma.sync") in kernel.text
    assert "cp.async" in kernel.text or shape in shapes.TINY  # rows off 16 bytes are not copied ahead


@pytest.mark.parametrize(("gpu", "shape"), rows(MODEST))
@pytest.mark.parametrize("product", ["forward", "dlhs", "drhs"])
def test_float32_is_not_rounded_and_hardly_spills(gpu, shape, product):
    (kernel,) = kernels(gpu, shape, product, jnp.float32)
    assert kernel.used["spilled"] <= SPILLED.get((gpu, product), 0)
    assert "fma.rn.f32" in kernel.text and "mma" not in kernel.text.replace("fma", "")


def test_tiles_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(triton_tiles, "choose", lambda *_: Tiles(128, 256, 128, warps=8, stages=4))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"[Ss]hared memory"):
        kernels("a100", MIXTRAL, "forward", jnp.bfloat16)


def test_tiles_that_are_no_power_of_two_are_refused(monkeypatch):
    monkeypatch.setattr(triton_tiles, "choose", lambda *_: Tiles(96, 64, 64, warps=4, stages=2))
    with pytest.raises(ValueError, match="power of 2"):
        kernels("a100", MIXTRAL, "forward", jnp.bfloat16)
