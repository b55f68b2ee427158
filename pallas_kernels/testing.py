"""What every implementation of an op is held against: float64 numpy oracles, poison, bounds."""

import jax
import jax.numpy as jnp
import numpy as np


def oracle_matmul(lhs_MK, rhs_GKN, size_G, group_offset: int = 0) -> np.ndarray:
    """`grouped_matmul` in float64; reads no row outside the groups."""
    lhs_MK, rhs_GKN = np.asarray(lhs_MK, np.float64), np.asarray(rhs_GKN, np.float64)
    out_MN = np.zeros((lhs_MK.shape[0], rhs_GKN.shape[2]))
    for matrix_KN, rows in zip(rhs_GKN, group_rows(size_G, group_offset, len(rhs_GKN)), strict=True):
        out_MN[rows] = lhs_MK[rows] @ matrix_KN
    return out_MN


def oracle_outer(lhs_MK, rhs_MN, size_G, group_offset: int = 0, num_groups: int | None = None) -> np.ndarray:
    """`grouped_outer` in float64; reads no row outside the groups."""
    lhs_MK, rhs_MN = np.asarray(lhs_MK, np.float64), np.asarray(rhs_MN, np.float64)
    num_groups = len(size_G) - group_offset if num_groups is None else num_groups
    return np.stack([lhs_MK[rows].T @ rhs_MN[rows] for rows in group_rows(size_G, group_offset, num_groups)])


def group_rows(size_G, group_offset: int, num_groups: int) -> list[slice]:
    """The rows of each of `num_groups` groups from `group_offset` on."""
    end_G = np.cumsum(size_G)
    held = slice(group_offset, group_offset + num_groups)
    return [slice(end - size, end) for end, size in zip(end_G[held], np.asarray(size_G)[held], strict=True)]


def poison(x, size_G, group_offset: int = 0, num_groups: int | None = None):
    """`x` with NaN in all rows that belong to no held group."""
    num_groups = len(size_G) - group_offset if num_groups is None else num_groups
    held_M = np.zeros(len(x), bool)
    for rows in group_rows(size_G, group_offset, num_groups):
        held_M[rows] = True
    return jnp.where(held_M[:, None], x, jnp.nan)


def draw(shape, seed: int = 0, dtype=jnp.float32):
    """Normal (lhs_MK, rhs_GKN, cotangent_MN) for a `GroupedShape`."""
    lhs_key, rhs_key, out_key = jax.random.split(jax.random.key(seed), 3)
    lhs_MK = jax.random.normal(lhs_key, (shape.M, shape.K), dtype)
    rhs_GKN = jax.random.normal(rhs_key, (shape.G, shape.K, shape.N), dtype)
    return lhs_MK, rhs_GKN, jax.random.normal(out_key, (shape.M, shape.N), dtype)


def assert_close(actual, expected, terms: int = 1) -> None:
    """Hold a result to the rounding of its type after a sum of `terms` products of unit normals.

    Accumulation is in float32 or wider, so that a narrower type rounds once.
    """
    accumulated = jnp.finfo(jnp.promote_types(actual.dtype, jnp.float32)).eps * 4 * max(terms, 1)
    rounded = jnp.finfo(actual.dtype).eps
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rounded, atol=accumulated)
