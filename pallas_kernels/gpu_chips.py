"""What kernels know of the GPU that programs are traced for."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """An NVIDIA GPU."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    smem: int  # bytes that one block can have
    flops: float  # bfloat16 on the tensor cores, dense, per second, as the vendor states it
    bandwidth: float  # of the main memory, bytes per second

    @property
    def hopper(self) -> bool:
        """Whether it has the warp-group products (wgmma) of sm_90a, which later chips lack again."""
        return self.capability == (9, 0)


CHIPS = {
    "A100": Chip((8, 0), 108, 163 * 1024, 312e12, 2.0e12),
    "L4": Chip((8, 9), 58, 99 * 1024, 121e12, 0.3e12),
    "H100": Chip((9, 0), 132, 227 * 1024, 989e12, 3.35e12),
    "H200": Chip((9, 0), 132, 227 * 1024, 989e12, 4.8e12),
    "B200": Chip((10, 0), 148, 227 * 1024, 2250e12, 8.0e12),
}
ASSUMED = "H100"  # where no GPU is known, as in an export on another machine


def this_chip() -> Chip:
    """The GPU of the mesh in use, else of the default device, else an H100."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    device = None if abstract else jax.devices()[0]
    kind = abstract.device_kind if abstract else device.device_kind
    for name, chip in CHIPS.items():
        if name in kind.replace("-", " ").split():
            return chip
    if device is not None and device.platform == "gpu":
        capability = tuple(map(int, device.compute_capability.split(".")))
        nearest = max(
            (c for c in CHIPS.values() if c.capability <= capability),
            default=CHIPS["L4"],
            key=lambda chip: chip.capability,
        )
        return dataclasses.replace(nearest, capability=capability, cores=device.core_count)
    return CHIPS[ASSUMED]
