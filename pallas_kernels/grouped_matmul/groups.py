"""Which rows belong to which group."""

import functools

import jax.numpy as jnp
from jax import lax


def spread(x_GN, start_G, end_G, num_rows: int):
    """For each row what its group has in `x_GN`; zero for the rows of nobody."""
    row_M = jnp.arange(num_rows, dtype=end_G.dtype)
    group_M = jnp.minimum(jnp.searchsorted(end_G, row_M, side="right"), len(end_G) - 1)
    inside_M = (row_M >= start_G[0]) & (row_M < end_G[-1])
    return jnp.where(inside_M[:, None], x_GN[group_M], 0)


def bounds_of(num_rows: int, group_sizes_G, group_offset, num_groups: int):
    """First and end row of each of `num_groups` groups from `group_offset` on.

    Raises:
      ValueError: there are not so many groups.
    """
    first = group_offset if isinstance(group_offset, int) else 0
    if group_sizes_G.ndim != 1 or not 0 <= first <= group_sizes_G.shape[0] - num_groups:
        wanted = f"groups {first} to {first + num_groups - 1} are wanted"
        raise ValueError(
            f"group_sizes is {group_sizes_G.shape}, but {wanted}; "
            "group_sizes counts the rows of all groups, group_offset is the first group that is wanted"
        )
    end_G = jnp.minimum(jnp.cumsum(group_sizes_G, dtype=jnp.int32), num_rows)
    start_G = jnp.concatenate([jnp.zeros_like(end_G[:1]), end_G[:-1]])
    held = functools.partial(lax.dynamic_slice_in_dim, start_index=group_offset, slice_size=num_groups)
    return held(start_G), held(end_G)


def sizes_behind(start_G, end_G):
    """Sizes of the groups behind one more group that has all rows before them; `group_offset` is then 1."""
    return jnp.concatenate([start_G[:1], end_G - start_G])
