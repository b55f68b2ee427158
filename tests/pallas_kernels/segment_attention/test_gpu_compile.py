"""The GPU kernels of segment attention compiled for GPUs that are not here, down to machine code."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.segment_attention import gpu, shapes, triton
from tests.pallas_kernels import topologies

pytestmark = topologies.needs_cuda_compiler

PUBLISHED = {shape.name: shape for shape in shapes.PUBLISHED}
# a few registers of the keys' kernel for heads of 128, whose two sums and two products fill the rest
SPILLS = {("backward", 128): 40}
FOR_EVERY_CHANGE = {"qwen3_30b_a3b"}
published = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FOR_EVERY_CHANGE else pytest.mark.nightly) for n in PUBLISHED]
)


def program(module, shape, function: str):
    """The forward or backward program of one implementation: what makes it, and its operands."""
    B, T, H, G, A, C = shape.B, shape.T, shape.H, shape.G, shape.A, shape.value_width
    of = lambda *dims: (dims, jnp.bfloat16)
    numbers = ((B, H, T), jnp.float32)
    operands = of(B, T, H, A), of(B, T, G, A), of(B, T, G, C), ((B, T), jnp.int32)
    static = {"window": shape.window, "scale": A**-0.5}
    if function == "forward":
        run = lambda *args: module.forward(*args, **static)[:2]
    else:
        operands = *operands, numbers, numbers, of(B, T, H, C)
        run = lambda *args: module.backward(*args, None, **static)
    return run, *operands


def compiled(chip: str, *program):
    with topologies.gpu(chip) as mesh:
        return topologies.compiled(mesh, *program)


def nothing_spills(chip: str, *program) -> bool:
    with topologies.gpu(chip) as mesh:
        kernels = topologies.ptx_kernels(chip, mesh, *program)
    return bool(kernels) and all(kernel.used["spilled"] == 0 for kernel in kernels)


@published
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_hopper_kernels_spill_nothing_and_products_overlap(name, function, monkeypatch, capfd):
    shape = PUBLISHED[name]
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    made = compiled("h100", *program(gpu, shape, function))
    printed = "".join(capfd.readouterr())
    kernels = topologies.ptxas(printed)
    assert len(kernels) == {"forward": 1, "backward": 2}[function]
    assert all(kernel["spilled"] <= SPILLS.get((function, shape.A), 0) for kernel in kernels)
    assert "serialized" not in printed  # what the compiler says when a product has to wait for the last one
    of_queries = 2 * shape.B * shape.T * shape.H * shape.A
    assert made.memory_analysis().temp_size_in_bytes < 4 * of_queries  # linear in T


@pytest.mark.nightly
@published
@pytest.mark.parametrize("chip", topologies.GPUS)
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_portable_kernels_spill_nothing(name, function, chip):
    assert nothing_spills(chip, *program(triton, PUBLISHED[name], function))


def test_portable_forward_spills_nothing():
    assert nothing_spills("a100", *program(triton, PUBLISHED["qwen3_30b_a3b"], "forward"))


def test_tiles_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(gpu, "FORWARD", {128: gpu.Tiles(128, 4)})
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=r"(?i)shared memory|SMEM"):
        compiled("h100", *program(gpu, PUBLISHED["qwen3_30b_a3b"], "forward"))
