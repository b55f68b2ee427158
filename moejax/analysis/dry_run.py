"""What a training run will cost, known before it starts: sizes, FLOPs per token and peak memory."""

import dataclasses
import math
from typing import Any

import jax

from moejax.analysis.flops import Cost, Trips, count


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The cost of one training step and the size of the model it trains."""

    parameters: int
    parameter_bytes: int  # of all devices together, one copy
    active_parameters: int  # that one token meets
    tokens_per_step: int  # of all devices together
    cost: Cost  # of one step on one device

    @property
    def flops_per_token(self) -> float:
        """FLOPs of forward, backward and update for one token, as compiled: recomputation is included."""
        return self.cost.flops * self.cost.devices / self.tokens_per_step

    @property
    def matmul_flops_per_token(self) -> float:
        return self.cost.matmul_flops * self.cost.devices / self.tokens_per_step

    @property
    def peak_bytes(self) -> int | None:
        """Memory of one device while a step runs."""
        return self.cost.peak_memory

    def table(self) -> str:
        """The figures as aligned lines of text."""
        ratio = self.matmul_flops_per_token / self.active_parameters
        rows = [
            ("parameters", f"{self.parameters:,} ({_size(self.parameter_bytes)})"),
            ("active per token", f"{self.active_parameters:,}"),
            ("tokens per step", f"{self.tokens_per_step:,}"),
            (
                "FLOPs per token",
                f"{_flops(self.flops_per_token)} (matmuls: {ratio:.2f} per active parameter)",
            ),
            ("memory traffic per step", f"{_size(self.cost.bytes)} per device"),
        ]
        rows += [
            (f"{kind} per step", f"{_size(n)} per device") for kind, n in self.cost.collective_bytes.items()
        ]
        if self.peak_bytes is not None:
            rows.append(("peak memory", f"{_size(self.peak_bytes)} per device, {self.cost.devices} in use"))
        rows += [("loop counted once", name) for name in self.cost.unknown_loops]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def dry_run(
    compiled: Any, params: Any, tokens_per_step: int, active_parameters: int, dynamic_trips: Trips = None
) -> DryRun:
    """Price a compiled training step.

    Args:
        compiled: the step, `jax.jit(step).lower(...).compile()`; nothing runs.
        params: the parameters or their `jax.ShapeDtypeStruct`s, with global shapes.
        tokens_per_step: tokens in the global batch of one step.
        active_parameters: parameters one token meets.
        dynamic_trips: iterations of loops whose count the program does not say (see `count`).
    """
    leaves = jax.tree.leaves(params)
    return DryRun(
        parameters=sum(math.prod(leaf.shape) for leaf in leaves),
        parameter_bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves),
        active_parameters=active_parameters,
        tokens_per_step=tokens_per_step,
        cost=count(compiled, dynamic_trips),
    )


def _size(n: float) -> str:
    return _scaled(n, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _flops(n: float) -> str:
    return _scaled(n, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


def _scaled(n: float, base: int, units: tuple[str, ...]) -> str:
    """Three significant digits with the largest unit that leaves a number of at least one."""
    power = min(int(math.log(n, base)) if n >= 1 else 0, len(units) - 1)
    return f"{n / base**power:.3g} {units[power]}"
