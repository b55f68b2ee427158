"""Sort and group: every device computes the experts it holds, without dropping a row.

MegaBlocks: Efficient Sparse Training with Mixture-of-Experts (Gale et al. 2022, arXiv 2211.15841): rows
sorted by expert, one grouped matmul, rows brought back and weighted. On one device nothing moves. Under a
mesh whose expert axis splits the experts, the tokens of that axis are gathered, each device computes its own
experts, and the partial sums are reduce-scattered home.

Differs from the paper: dense grouped matmul instead of block-sparse products.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moejax import sharding
from moejax.dispatch.sort import run_sorted
from pallas_kernels.varying import vary


@dataclasses.dataclass(frozen=True)
class Local:
    def __call__(self, expert_fn, p, x_BTD, expert_BTK, gate_BTK):
        E = jax.tree.leaves(p)[0].shape[0]
        rows = sharding.out("B")
        if rows is None:
            y_BTD = run_flat(expert_fn, p, x_BTD, expert_BTK, gate_BTK, E)
        else:
            p = jax.tree.map(sharding.gather, p)
            where = jax.tree.map(lambda w: jax.typeof(w).sharding.spec, p)
            run = jax.shard_map(
                functools.partial(run_shard, expert_fn),
                in_specs=(where, P(*rows), P(*rows), P(*rows)),
                out_specs=P(*rows),
                check_vma=True,
            )
            y_BTD = run(p, x_BTD, expert_BTK, gate_BTK)
        return y_BTD, expert_BTK < E


def run_flat(expert_fn, p, x_BTD, expert_BTK, gate_BTK, num_experts):
    """`run_sorted` over the flattened rows of a batch."""
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    expert_NK = expert_BTK.reshape(len(x_ND), -1)
    y_ND = run_sorted(expert_fn, p, x_ND, expert_NK, gate_BTK.reshape(expert_NK.shape), num_experts)
    return y_ND.reshape(x_BTD.shape)


def run_shard(expert_fn, p_e, x_bTD, expert_bTK, gate_bTK):
    """One device's part: gather over the expert axis, compute the experts held here, reduce-scatter."""
    gather = functools.partial(jax.lax.all_gather, axis_name="expert", axis=0, tiled=True)
    x_BTD, expert_BTK, gate_BTK = jax.tree.map(gather, (x_bTD, expert_bTK, gate_bTK))
    num_local = jax.tree.leaves(p_e)[0].shape[0]
    own_BTK = expert_BTK - jax.lax.axis_index("expert") * num_local
    own_BTK = jnp.where((own_BTK >= 0) & (own_BTK < num_local), own_BTK, num_local)
    # Casting here and not in the experts sums gradients over the axes once per token and parameter, and in
    # the parameters' own dtype.
    operands = (p_e, x_BTD, own_BTK, gate_BTK)
    operands = jax.tree.map(functools.partial(vary, axes=frozenset(sharding.AXES)), operands)
    y_BTD = run_flat(expert_fn, *operands, num_local)
    y_BTD = jax.lax.psum(y_BTD, "tensor")
    return jax.lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True)
