"""Groups of tokens that share something, such as an expert's slots.

row     each row of the batch by itself; nothing depends on the other rows
shard   the rows of one device; without a mesh, the whole batch
global  the whole batch, on however many devices it lies
"""

import functools

import jax

from moejax import sharding
from moejax.config import require

GROUPS = ("row", "shard", "global")


def check_group(group: str) -> None:
    """Refuse a group that nobody knows."""
    require(
        group in GROUPS, f"selector.group={group!r} is not one of {', '.join(GROUPS)}; choose one of them"
    )


def over_groups(group: str, fn, *tokens_BT):
    """`fn(axes, *tokens_N)` of every group, its result brought back to [B, T, ...].

    Args:
      group: which tokens belong together.
      fn: takes arrays of flat tokens [N, ...] and gives one like them; `axes` are the mesh axes over which
        the group goes on on other devices, in the order of their rows: () if it does not.
      *tokens_BT: arrays [B, T, ...].
    """
    rows = sharding.out("B")
    if rows is None:
        return _local(fn, (), group == "row", *tokens_BT)
    axes = rows[0] if isinstance(rows[0], tuple) else (rows[0],)
    run = functools.partial(_local, fn, axes if group == "global" else (), group == "row")
    return jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=True)(*tokens_BT)


def _local(fn, axes, by_row: bool, *tokens_bT):
    fn = functools.partial(fn, axes)
    if by_row:
        return jax.vmap(fn)(*tokens_bT)
    out_N = fn(*(x.reshape(-1, *x.shape[2:]) for x in tokens_bT))
    return out_N.reshape(*tokens_bT[0].shape[:2], *out_N.shape[1:])


def gathered(x_N, axes):
    """The group's tokens of all devices, in the order of the batch."""
    return jax.lax.all_gather(x_N, axes, tiled=True) if axes else x_N


def own(x_N, axes):
    """This device's part of what `gathered` gave."""
    if not axes:
        return x_N
    size = x_N.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x_N, jax.lax.axis_index(axes) * size, size)
