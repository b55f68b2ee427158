"""What kernels know of the TPU that programs are traced for, and what models of their time assume of all."""

import dataclasses

from jax.experimental.pallas import tpu as pltpu

STEP_SECONDS = 0.35e-6  # of a step of a kernel's grid
VMEM_SHARE = 0.75  # what a kernel may take; the rest is for what the compiler keeps there around it
FLOAT32_PASSES = 6  # bfloat16 products in one of float32


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU core."""

    flops: float  # bfloat16, per second
    bandwidth: float  # of the main memory, bytes per second
    vmem: int  # bytes
    mxu: int  # rows and columns of its matrix unit


def this_chip() -> Chip:
    """The TPU of the mesh in use, else of the default device, else one with the least VMEM since v5."""
    try:
        info = pltpu.get_tpu_info()
    except ValueError:
        info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5P, 1)
    return Chip(
        info.bf16_ops_per_second,
        info.mem_bw_bytes_per_second,
        info.vmem_capacity_bytes,
        info.mxu_column_size,
    )
