"""The frame of every dispatcher: each device of a mesh takes its own tokens and its own experts."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax import sharding
from pallas_kernels.varying import vary

AXIS = "expert"  # of the mesh: over it the experts lie, and rows travel


def on_every_device(run, operands, chunks: int = 1):
    """The result of `run(p, x_ND, expert_NK, gate_NK) -> (y_ND, kept_NK)`, on [B, T, ...].

    Without a mesh `run` gets all tokens and experts. Under one it gets a device's own, may exchange rows
    over `AXIS`, and leaves the sum over a split expert width to this function.

    Args:
      operands: (p, x_BTD, expert_BTK, gate_BTK), arguments of `seams.Dispatch`.
      chunks: shares of the tokens on which `run` is called, so that the exchange of one can pass while the
        experts compute another.
    """
    run = functools.partial(_in_chunks, run, chunks)
    rows = sharding.out("B")
    if rows is None:
        return _flat(run, *operands)
    p = jax.tree.map(sharding.gather, operands[0])
    where = jax.tree.map(lambda w: jax.typeof(w).sharding.spec, p)
    return jax.shard_map(
        functools.partial(_shard, run),
        in_specs=(where, P(*rows), P(*rows), P(*rows)),
        out_specs=P(*rows),
        check_vma=True,
    )(p, *operands[1:])


def num_experts(p) -> int:
    """How many experts a tree of parameters holds."""
    return jax.tree.leaves(p)[0].shape[0]


def _shard(run, p_e, x_bTD, expert_bTK, gate_bTK):
    # Casting here and not in the experts sums gradients over the axes once per token and parameter, and in
    # the parameters' own dtype.
    everywhere = functools.partial(vary, axes=frozenset(sharding.AXES))
    p_e, x_bTD, gate_bTK = jax.tree.map(everywhere, (p_e, x_bTD, gate_bTK))
    y_bTD, kept_bTK = _flat(run, p_e, x_bTD, expert_bTK, gate_bTK)
    return lax.psum(y_bTD, "tensor"), kept_bTK


def _flat(run, p, *arrays):
    """`run` on [N, ...] in the place of [B, T, ...]."""
    x_BTD, expert_BTK, _ = arrays
    num_tokens = math.prod(expert_BTK.shape[:2])
    y_ND, kept_NK = run(p, *(a.reshape(num_tokens, a.shape[2]) for a in arrays))
    return y_ND.reshape(x_BTD.shape), kept_NK.reshape(expert_BTK.shape)


def _in_chunks(run, chunks: int, p, *arrays):
    """A loop that is unrolled, as the compiler overlaps only what is in one computation."""
    chunks = min(chunks, len(arrays[0]))
    shares = zip(*(jnp.array_split(a, chunks) for a in arrays), strict=True)
    results = [run(p, *share) for share in shares]
    return results[0] if chunks == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
