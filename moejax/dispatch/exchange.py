"""Rows in cells of a fixed size, and the all-to-all that moves them."""

import functools
import math

import jax.numpy as jnp
from jax import lax

from moejax.config import require
from moejax.dispatch.shards import num_experts
from moejax.dispatch.sort import by_expert
from moejax.ops.capacity import tutel_slots
from pallas_kernels import permute, unpermute


def check_cells(where: str, cells) -> None:
    """Refuse cells that cannot be; `cells` has a capacity_factor, chunks and a node_size, set at `where`."""
    factor = cells.capacity_factor
    require(
        factor is None or 0 < factor < math.inf,
        f"{where}.capacity_factor={factor} must be positive and finite, or None to drop nothing",
    )
    for name in ("chunks", "node_size"):
        value = getattr(cells, name)
        require(value >= 1, f"{where}.{name}={value} must be at least 1")


def capacity(factor: float | None, num_tokens: int, num_slots: int, num_experts: int) -> int:
    """C: slots that one device has for one expert, at most all of its tokens (factor None)."""
    if factor is None:
        return num_tokens
    return min(num_tokens, max(1, tutel_slots(num_tokens, num_experts, num_slots, factor)))


def in_cells(expert_NK, num_experts: int, capacity: int):
    """Slots in cells of every expert, in choice-major order.

    Returns:
      (flat slot of every place in the cells, place of every slot, rows in each cell); past the end = nowhere.
    """
    expert_KN = expert_NK.T
    K, N = expert_KN.shape
    order_R, home_KN, size_E = by_expert(expert_KN, num_experts)
    start_E = jnp.cumsum(size_E) - size_E
    rank_KN = home_KN - start_E.at[expert_KN].get(mode="clip")
    is_kept_KN = (expert_KN < num_experts) & (rank_KN < capacity)
    home_KN = jnp.where(is_kept_KN, expert_KN * capacity + rank_KN, num_experts * capacity)
    rank_1C, size_E = jnp.arange(capacity)[None], jnp.minimum(size_E, capacity)
    slot_EC = order_R.at[start_E[:, None] + rank_1C].get(mode="clip")
    slot_EC = jnp.where(rank_1C < size_E[:, None], slot_EC % N * K + slot_EC // N, N * K)
    return slot_EC.reshape(-1), home_KN.T, size_E


def through_cells(exchange, x_ND, slots, gate_NK):
    """y_ND of tokens in cells.

    Args:
      exchange: (cells_ECD, size_E) -> cells_ECD, what becomes of the first size_E rows of every cell.
      slots: as `in_cells` gives them.
    """
    order_R, home_NK, size_E = slots
    cells_ECD = permute(x_ND, order_R, home_NK).reshape(len(size_E), -1, x_ND.shape[1])
    cells_ECD = exchange(cells_ECD, size_E)
    return unpermute(cells_ECD.reshape(len(order_R), -1), order_R, home_NK, gate_NK)


def compute_cells(expert_fn, p_e, cells_ICD, size_I):
    """`expert_fn` on the first size_I rows of every cell; cell i is of expert i modulo those held here."""
    num_cells, C, D = cells_ICD.shape
    num_local = num_experts(p_e)
    expert_I1 = jnp.arange(num_cells)[:, None] % num_local
    expert_IC = jnp.where(jnp.arange(C)[None] < size_I[:, None], expert_I1, num_local)
    order_R, home_N1, size_e = by_expert(expert_IC.reshape(-1, 1), num_local)
    rows_RD = expert_fn(p_e, permute(cells_ICD.reshape(-1, D), order_R, home_N1), size_e)
    return unpermute(rows_RD, order_R, home_N1).reshape(cells_ICD.shape)


def all_to_all(x, axes, node_size: int = 1):
    """Block p of the leading dim goes to device p of the axes, the block from device p comes in its place.

    With a node size in between, first to the right place in the own node, then to the right node.
    """
    num_devices = lax.axis_size(axes)
    swap = functools.partial(lax.all_to_all, axis_name=axes, tiled=True)
    if node_size in (1, num_devices):
        return swap(x, split_axis=0, concat_axis=0)
    nodes = [list(range(i, i + node_size)) for i in range(0, num_devices, node_size)]
    peers = [list(devices) for devices in zip(*nodes, strict=True)]  # the same place in every node
    x = x.reshape(len(nodes), node_size, -1, *x.shape[1:])
    x = swap(x, split_axis=1, concat_axis=1, axis_index_groups=nodes)
    x = swap(x, split_axis=0, concat_axis=0, axis_index_groups=peers)
    return x.reshape(-1, *x.shape[3:])
