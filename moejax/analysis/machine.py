"""What this machine is and what it can do: the yardsticks a benchmark measures itself against.

Vendors' peaks are for accelerators. On a CPU the yardstick is measured in the same run, with the same XLA, so
that a noisy or throttled machine lowers the measure and the yardstick alike.
"""

import dataclasses
import os
import platform
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Dense bf16 FLOP/s of one JAX device, as the vendors state them; the first matching prefix wins.
_PEAK = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),  # v5p
    ("TPU v6", 918e12),  # v6e
    ("TPU7x", 1153.5e12),  # one of the chip's two devices
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a number was measured."""

    device: str  # kind of the JAX devices
    devices: int
    processor: str  # model of the host's CPU
    cores: int  # of the host that this process may use
    memory: int | None  # bytes of host memory
    system: str
    python: str
    jax: str
    jaxlib: str

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:.0f} GiB" if self.memory else ""
        host = f"{self.processor}, {self.cores} cores{memory}"
        return f"{self.devices} x {self.device} ({host}), JAX {self.jax}, Python {self.python}, {self.system}"


def describe() -> Machine:
    """This process's devices, host and versions."""
    return Machine(
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory=_memory(),
        system=platform.system(),
        python=platform.python_version(),
        jax=jax.__version__,
        jaxlib=jax.lib.__version__,
    )


def peak_flops(device_kind: str | None = None) -> float | None:
    """Dense bf16 FLOP/s of one device, for model FLOP utilisation; None where no vendor states one (CPUs).

    Args:
        device_kind: as `jax.Device.device_kind` names it; the default device's when None.
    """
    kind = device_kind or jax.devices()[0].device_kind
    return next((flops for prefix, flops in _PEAK if kind.startswith(prefix)), None)


def matmul_rate(dtype: str = "float32", size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of one device in a square matmul, the best of `repeats` after a warm-up.

    The best and not the mean: what disturbs a run only ever slows it.

    Args:
        dtype: of operands and result.
        size: rows and columns; by default large enough to saturate the device.
        repeats: measurements.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
    matmul = jax.jit(jnp.matmul)
    return 2 * size**3 / _best(lambda: matmul(a, b), repeats)


def memory_bandwidth(size: int = 2**26, repeats: int = 5) -> float:
    """Bytes/s of one device in `a = a / 2 + b` in place, the best of `repeats` after a warm-up.

    In place, because a fresh result would time the operating system handing out pages.

    Args:
        size: float32 elements of each array; both together must exceed the caches.
        repeats: measurements.
    """
    rows = (size // 2**10, 2**10)
    triad = jax.jit(lambda a, b: a * 0.5 + b, donate_argnums=0)
    state = [jnp.ones(rows, jnp.float32)]
    b = jnp.ones(rows, jnp.float32)

    def step() -> jax.Array:
        state[0] = triad(state[0], b)
        return state[0]

    return 3 * b.nbytes / _best(step, repeats)


def _best(run: Callable[[], jax.Array], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that compiles and warms up."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            model = re.search(r"model name\s*:\s*(.+)", file.read())
    except OSError:
        model = None
    return model.group(1).strip() if model else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
