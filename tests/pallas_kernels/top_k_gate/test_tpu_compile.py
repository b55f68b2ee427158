"""The TPU kernel compiled for TPUs that are not here, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import top_k_gate
from pallas_kernels.errors import NotServedError
from pallas_kernels.top_k_gate import tpu
from tests.pallas_kernels import topologies
from tests.pallas_kernels.topologies import VMEM, generations, vmem_of_kernels

NIGHTLY = [(37, 10, 3), (4096, 8, 2), (16384, 128, 8), (4096, 512, 16)]


def compiled(generation, T, E, k, **how):
    with topologies.tpu(generation) as mesh:
        return topologies.compiled(mesh, functools.partial(top_k_gate, k=k, **how), ((T, E), jnp.float32))


@topologies.needs_libtpu
@generations
@pytest.mark.parametrize(
    ("T", "E", "k"), [(16384, 256, 8), *(pytest.param(*size, marks=pytest.mark.nightly) for size in NIGHTLY)]
)
def test_compiles(generation, T, E, k):
    (vmem,) = vmem_of_kernels(compiled(generation, T, E, k, score="sigmoid"))
    assert vmem <= VMEM[generation] / 4


@topologies.needs_libtpu
def test_compiles_under_vmap():
    with topologies.tpu("v6e") as mesh:
        gates = jax.vmap(functools.partial(top_k_gate, k=2))
        assert len(vmem_of_kernels(topologies.compiled(mesh, gates, ((3, 64, 16), jnp.float32)))) == 1


@topologies.needs_libtpu
def test_unaligned_blocks_are_refused(monkeypatch):
    monkeypatch.setattr(tpu, "ROWS", 100)
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compiled("v6e", 256, 64, 8)


def test_what_a_tpu_lacks():
    with pytest.raises(NotServedError, match=r"at most 16 of 512 experts, not 2 of 600; .*'xla' can"):
        top_k_gate(jnp.ones((4, 600)), 2, implementation="tpu")
    with jax.enable_x64(True), pytest.raises(NotServedError, match="float32, not float64"):
        top_k_gate(jnp.ones((4, 6), jnp.float64), 2, implementation="tpu")
