"""A layer of many narrow experts on few tokens: the union of those that are wanted, against all of them."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moejax.bench.rounds import interleave
from pallas_kernels.union_experts.api import union_experts

ALL = "all"
STEPS = 3  # of a sample


def all_experts(x_ND, weight_NE, up_DR, down_RD):
    """The layer without looking at who is wanted, as it is trained: two products; R = E F."""
    N, E = weight_NE.shape
    h_NEF = jax.nn.silu(x_ND @ up_DR).reshape(N, E, -1) * weight_NE[:, :, None]
    return h_NEF.reshape(N, -1) @ down_RD


def seconds(
    gates: Mapping[str, np.ndarray], width: int, hidden: int, num_rounds: int
) -> dict[str, list[float]]:
    """Per chunk of tokens, a sample per round: ALL, and the union of the experts under each name.

    Args:
      gates: by name, [chunks, tokens, E]; 0 = not wanted. Equally many of each.
      width: of the layer, whose weights are random.
      hidden: of one expert.
    """
    first = next(iter(gates.values()))
    chunks, N, E = first.shape
    keys = jax.random.split(jax.random.key(0), 3)
    x_ND = jax.random.normal(keys[0], (N, width))
    up_EDF = jax.random.normal(keys[1], (E, width, hidden)) * width**-0.5
    down_EFD = jax.random.normal(keys[2], (E, hidden, width)) * hidden**-0.5
    up_DR, down_RD = up_EDF.transpose(1, 0, 2).reshape(width, -1), down_EFD.reshape(-1, width)
    dense, union = jax.jit(all_experts), jax.jit(union_experts)
    tasks = {
        name: _task(list(map(jnp.asarray, each)), lambda weight_NE: union(x_ND, weight_NE, up_EDF, down_EFD))
        for name, each in gates.items()
    }
    tasks[ALL] = _task(
        list(map(jnp.asarray, first)), lambda weight_NE: dense(x_ND, weight_NE, up_DR, down_RD)
    )
    for task in tasks.values():
        task()  # compiles
    samples = interleave(tasks, num_rounds, STEPS, lambda: None)
    return {name: [s / chunks for s in each] for name, each in samples.items()}


def _task(weights: Sequence[jax.Array], apply: Callable[[jax.Array], jax.Array]) -> Callable[[], None]:
    def run() -> None:
        for weight_NE in weights:
            jax.block_until_ready(apply(weight_NE))

    return run
