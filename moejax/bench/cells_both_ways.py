"""Rows into cells of experts and back: by sorting, and by products with a one-hot mask as GShard has it.

GShard: Scaling Giant Models with Conditional Computation (Lepikhin et al. 2020, arXiv 2006.16668).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moejax.bench.rounds import Samples, interleave
from moejax.dispatch.exchange import in_cells, through_cells


def seconds(tokens: tuple[int, ...], width: int, rounds: int, E: int = 8, K: int = 2) -> dict[int, Samples]:
    """Of a forward and a backward pass by number of tokens and way, with 1.25 times the mean load as room."""
    rng, found = np.random.default_rng(0), {}
    for T in tokens:
        x_ND = jnp.asarray(rng.standard_normal((T, width), np.float32))
        gate_NK = jnp.asarray(rng.random((T, K), np.float32))
        expert_NK = jnp.asarray(rng.permuted(np.tile(np.arange(E), (T, 1)), axis=1)[:, :K], jnp.int32)
        ways = {name: _gradients(way, expert_NK, E, int(1.25 * T * K / E)) for name, way in WAYS.items()}
        steps = {name: functools.partial(_wait, way, x_ND, gate_NK) for name, way in ways.items()}
        for one in steps.values():
            one()
        found[T] = interleave(steps, rounds, 1, lambda: None)
    return found


def sorted_cells(x_ND, gate_NK, expert_NK, E: int, C: int):
    """Tokens into their cells and back."""
    return through_cells(lambda cells_ECD, size_E: 2 * cells_ECD, x_ND, in_cells(expert_NK, E, C), gate_NK)


def one_hot_cells(x_ND, gate_NK, expert_NK, E: int, C: int):
    """The same by products with a mask [N, E, C]."""
    expert_KNE = jax.nn.one_hot(expert_NK.T, E, dtype=jnp.int32)
    place_KNE = jnp.cumsum(expert_KNE.reshape(-1, E), axis=0).reshape(expert_KNE.shape) - 1
    mask_KNEC = expert_KNE[..., None] * jax.nn.one_hot(place_KNE, C)
    cells_ECD = 2 * jnp.einsum("KNEC,ND->ECD", mask_KNEC, x_ND)
    return jnp.einsum("KNEC,NK,ECD->ND", mask_KNEC, gate_NK, cells_ECD)


WAYS = {"one-hot": one_hot_cells, "sorted": sorted_cells}


def _gradients(way: Callable, expert_NK, E: int, C: int) -> Callable:
    """Gradients of a number that depends on all that comes back."""
    return jax.jit(
        jax.grad(lambda x, gate: jnp.sum(jnp.square(way(x, gate, expert_NK, E, C))), argnums=(0, 1))
    )


def _wait(program: Callable, *operands) -> None:
    jax.block_until_ready(program(*operands))
