"""The TPU kernels compiled for TPUs that are not here: Mosaic takes them, and they fit in VMEM and SMEM."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import permute, unpermute
from pallas_kernels.permute import shapes, tpu
from pallas_kernels.permute.shapes import PermuteShape
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

pytestmark = topologies.needs_libtpu

FOR_EVERY_CHANGE = {"many_experts"}
WIDE = PermuteShape("wide", N=64, K=2, D=512, E=4)


@pytest.fixture
def mesh(generation):
    with topologies.tpu(generation) as mesh:
        yield mesh


def compiled(mesh, shape, dtype):
    """The program of rows to experts and back, in value and gradient, by the default implementation."""

    def there_and_back(x_ND, order_R, home_NK, gate_NK):
        back = lambda x_ND, gate_NK: unpermute(permute(x_ND, order_R, home_NK), order_R, home_NK, gate_NK)
        y_ND, pull = jax.vjp(back, x_ND, gate_NK)
        return y_ND, pull(y_ND)

    R, slots = shape.N * shape.K, (shape.N, shape.K)
    operands = ((shape.N, shape.D), dtype), ((R,), jnp.int32), (slots, jnp.int32), (slots, jnp.float32)
    return topologies.compiled(mesh, there_and_back, *operands)


def rows(of) -> list:
    """A parameter per shape; most are for the night."""
    marks = lambda shape: () if shape.name in FOR_EVERY_CHANGE else pytest.mark.nightly
    return [pytest.param(shape, marks=marks(shape), id=shape.name) for shape in of]


@generations
@pytest.mark.parametrize("shape", rows((WIDE, *shapes.SMALL, *shapes.PUBLISHED)))
def test_compiles_in_bfloat16(mesh, generation, shape):
    vmem = vmem_of_kernels(compiled(mesh, shape, jnp.bfloat16))
    assert len(vmem) == 4  # there, back, the slopes, and the way there backwards
    assert max(vmem) <= tpu.LIMIT < VMEM[generation]


@generations
@pytest.mark.parametrize("shape", rows((*shapes.TINY, shapes.SMALL[0], shapes.PUBLISHED[0])))
def test_compiles_in_float32(mesh, generation, shape):
    assert max(vmem_of_kernels(compiled(mesh, shape, jnp.float32))) <= tpu.LIMIT


@pytest.mark.parametrize("generation", ["v6e"])
@pytest.mark.parametrize("slots_in_axes", [None, 0], ids=["shared_slots", "own_slots"])
def test_compiles_under_vmap(mesh, generation, slots_in_axes):
    batch = () if slots_in_axes is None else (3,)
    operands = ((3, 64, 256), jnp.bfloat16), ((*batch, 128), jnp.int32), ((*batch, 64, 2), jnp.int32)
    there = jax.vmap(permute, (0, slots_in_axes, slots_in_axes))
    assert "tpu_custom_call" in topologies.compiled(mesh, there, *operands).as_text()


@pytest.mark.parametrize("generation", ["v6e"])
def test_more_vmem_than_was_granted_is_refused(mesh, generation, monkeypatch):
    monkeypatch.setattr(tpu, "LIMIT", 2**18)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        compiled(mesh, shapes.SMALL[0], jnp.bfloat16)


@pytest.mark.parametrize("generation", ["v6e"])
def test_single_rows_of_half_words_are_refused(mesh, generation, monkeypatch):
    """Why bfloat16 is packed: a copy cannot begin between two rows that share a word."""
    monkeypatch.setattr(tpu, "_packed", lambda x_ND: x_ND)
    monkeypatch.setattr(tpu, "_unpacked", lambda rows: rows.astype(jnp.float32))
    with pytest.raises(Exception, match="aligned to tiles"):
        compiled(mesh, WIDE, jnp.bfloat16)
