"""Tokens come to the experts' devices and results go home: all-gather and reduce-scatter.

MegaBlocks: Efficient Sparse Training with Mixture-of-Experts (Gale et al. 2022, arXiv 2211.15841): rows
sorted by expert, one grouped matmul, rows brought back and weighted. On one device nothing moves. Where the
expert axis of a mesh splits the experts, the tokens of that axis are gathered, each device computes its own
experts, and the partial sums are reduce-scattered home. No row is dropped.

Differs from the paper: dense grouped matmul instead of block-sparse products.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.config import require
from moejax.dispatch.shards import AXIS, num_experts, on_every_device
from moejax.dispatch.sort import run_sorted
from moejax.seams import Dispatch


@dataclasses.dataclass(frozen=True)
class Local(Dispatch):
    chunks: int = 1  # shares of the tokens that are gathered and computed one after the other

    def __post_init__(self):
        require(self.chunks >= 1, f"dispatch.chunks={self.chunks} must be at least 1")

    def __call__(self, expert_fn, p, x_BTD, expert_BTK, gate_BTK):
        run = functools.partial(_run, expert_fn, num_experts(p))
        return on_every_device(run, (p, x_BTD, expert_BTK, gate_BTK), self.chunks)

    def collective_bytes(self, load, passes: int = 1) -> dict[str, int]:
        """Bytes that one device hands to collectives (of a gather: gets) in a forward pass.

        Args:
          load: a `dispatch.load.Load`.
          passes: 2 = with the backward pass.
        """
        rows = load.devices * load.tokens * load.row_bytes
        slots = 4 * load.devices * load.rows  # indices and gates; only gates have a gradient
        return {
            "all-gather": passes * rows + 2 * slots,
            "reduce-scatter": passes * rows + (passes - 1) * slots,
        }


def _run(expert_fn, E, p, x_ND, expert_NK, gate_NK):
    if num_experts(p) == E:
        y_ND = run_sorted(expert_fn, p, x_ND, expert_NK, gate_NK, E)
    else:
        y_ND = _gathered(expert_fn, p, x_ND, expert_NK, gate_NK)
    return y_ND, expert_NK < E


def _gathered(expert_fn, p_e, x_nD, expert_nK, gate_nK):
    """Gather over the expert axis, compute the experts held here, reduce-scatter."""
    gather = functools.partial(lax.all_gather, axis_name=AXIS, axis=0, tiled=True)
    x_ND, expert_NK, gate_NK = jax.tree.map(gather, (x_nD, expert_nK, gate_nK))
    num_local = num_experts(p_e)
    own_NK = expert_NK - lax.axis_index(AXIS) * num_local
    own_NK = jnp.where((own_NK >= 0) & (own_NK < num_local), own_NK, num_local)
    y_ND = run_sorted(expert_fn, p_e, x_ND, own_NK, gate_NK, num_local)
    return lax.psum_scatter(y_ND, AXIS, scatter_dimension=0, tiled=True)
