"""Linear costs of collectives on the current mesh: what the planners of parallelism and overlap ask for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moejax.analysis.overlap_plan import Linear, fit_linear
from moejax.bench.rounds import interleave

AXES = ("data", "fsdp", "expert")  # over which rows are split


def line(sizes, times) -> tuple[Linear, float]:
    """The fit and its r squared; through the origin where noise would give a negative time to start."""
    slope, start = np.polyfit(sizes, times, 1)
    return fit_linear(sizes, times, through_origin=bool(start < 0 or slope < 0))


def milliseconds(collective: Callable, size: int, rounds: int) -> float:
    """Median time of a collective in which every device of the current mesh brings `size` float32."""
    rows, mesh = jax.P(AXES), jax.sharding.get_mesh()
    program = lambda x: x + jnp.mean(collective(x))
    moved = jax.jit(jax.shard_map(program, in_specs=rows, out_specs=rows, check_vma=True))
    x = jax.device_put(np.ones(mesh.size * size, np.float32), jax.NamedSharding(mesh, rows))
    one = lambda: jax.block_until_ready(moved(x))
    one()
    return 1e3 * float(np.median(interleave({"": one}, rounds, 3, lambda: None)[""]))
