"""Accelerators that are not here, for which kernels are compiled ahead of time all the same.

Mosaic's TPU compiler comes with libtpu, the GPU one (down to ptxas) with the CUDA plugin:
`pip install 'moejax[aot]'`. Where they are absent, the tests that need them are skipped.
"""

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
VMEM = {"v5e": 128 * 2**20, "v5p": 64 * 2**20, "v6e": 128 * 2**20}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'moejax[aot]'"
)
needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="no CUDA plugin: pip install 'moejax[aot]'"
)
generations = pytest.mark.parametrize("generation", TPUS)

# What XLA asks of a GPU that it compiles for, from the vendor's data sheets.
GPUS = {
    "h100": {"name": "NVIDIA H100 80GB HBM3", "major": 9, "cores": 132, "smem": 232448, "l2": 50},
    "a100": {"name": "NVIDIA A100-SXM4-80GB", "major": 8, "cores": 108, "smem": 166912, "l2": 40},
}
GPU_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {smem} shared_memory_per_core: {smem}
  core_count: {cores} fpus_per_core: 128 clock_rate_ghz: 1.8
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 2000000000000 l2_cache_size: {l2}000000 device_memory_size: 80000000000
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
device_description_str: "{name}"
"""


@contextlib.contextmanager
def tpu(generation: str):
    """One core of a TPU as the mesh for which programs are traced and compiled."""
    here = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, os.environ.get(name, value))
        with _mesh(topologies.get_topology_desc(platform="tpu", topology_name=TPUS[generation])) as mesh:
            yield mesh


@contextlib.contextmanager
def gpu(name: str):
    """A GPU as the mesh for which programs are traced and compiled."""
    config = GPU_CONFIG.format(**GPUS[name])
    with _mesh(topologies.get_topology_desc(name, "cuda", target_config=config, topology="1x1x1")) as mesh:
        yield mesh


@contextlib.contextmanager
def _mesh(topology):
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield mesh


def compiled(mesh, function, *operands, **options):
    """The program of a function for operands given as (shape, dtype), with options of the compiler."""
    here = NamedSharding(mesh, P())
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape, dtype in operands]
    anew = lambda *args: function(*args)  # so that nothing is taken from what another test has traced
    # What tests themselves run is compiled quickly (tests/quick_compile.py), these as if on the machine.
    return jax.jit(anew).lower(*shapes).compile({"xla_backend_optimization_level": 3} | options)


def abstract_gpus(name: str, count: int = 1) -> jax.sharding.AbstractMesh:
    """A mesh of GPUs in a row for programs that are only lowered, which needs no compiler for them."""
    device = jax.sharding.AbstractDevice(GPUS[name]["name"], GPUS[name]["cores"], platform="gpu")
    return jax.sharding.AbstractMesh(
        (count,), ("row",), axis_types=(AxisType.Explicit,), abstract_device=device
    )


def exported(function, *operands) -> jax.export.Exported:
    """The program for CUDA of a function with kernels in it, whose stability nobody promises."""
    anew = lambda *args: function(*args)
    kernels = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    return jax.export.export(jax.jit(anew), platforms=["cuda"], disabled_checks=[kernels])(*operands)


def vmem_of_kernels(program) -> list[int]:
    """Bytes of VMEM in use while each TPU kernel runs, as the compiler counted them."""
    calls = [line for line in program.as_text().splitlines() if '"tpu_custom_call"' in line]
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
    return [int(re.search(used, call).group(1)) for call in calls]


def ptxas(text: str) -> list[dict[str, int]]:
    """Registers and spilled bytes of each GPU kernel, from what ptxas printed (`MOSAIC_GPU_DUMP_PTXAS=1`)."""
    found = re.findall(r"(\d+) bytes spill stores.*?Used (\d+) registers", text, re.DOTALL)
    return [{"spilled": int(spilled), "registers": int(registers)} for spilled, registers in found]


KERNELS = ("grouped_", "int8_", "segment_", "slot_", "union_")  # how names of ours begin


class PtxKernel(NamedTuple):
    """A GPU kernel as XLA hands it to ptxas, and what ptxas made of it."""

    name: str
    text: str
    used: dict[str, int]


def ptx_kernels(gpu_name: str, mesh, function, *operands) -> list[PtxKernel]:
    """The kernels of `pallas_call` in the program of a function for operands given as (shape, dtype)."""
    arch = {"h100": "sm_90a", "a100": "sm_80"}[gpu_name]
    assembler = Path(importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations[0], "bin/ptxas")
    with tempfile.TemporaryDirectory() as folder:
        compiled(mesh, function, *operands, xla_dump_to=folder)
        found = []
        for path in Path(folder).glob("*.ptx"):
            _, *pieces = re.split(r"\.entry (\w+)", path.read_text())
            texts = dict(zip(pieces[::2], pieces[1::2], strict=True))
            if not any(name.startswith(KERNELS) for name in texts):
                continue  # XLA's own, or nothing
            command = [assembler, "--verbose", f"--gpu-name={arch}", path, "--output-file=/dev/null"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            names = re.findall(r"Compiling entry function '(\w+)'", said)
            found += [
                PtxKernel(name, texts[name], used) for name, used in zip(names, ptxas(said), strict=True)
            ]
    return [kernel for kernel in found if kernel.name.startswith(KERNELS)]
