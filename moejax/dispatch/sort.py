"""Rows sorted by expert and brought back, on one device: what every dispatcher does between exchanges.

A place past the end is nowhere: what is brought back from there is zero, and so is its gradient.
"""

import jax.numpy as jnp

from pallas_kernels import permute, unpermute


def by_expert(expert_NK, num_experts: int):
    """(order_R, home_NK, size_E) of slots sorted by expert; empty ones come last, their home is nowhere."""
    slot_R = expert_NK.reshape(-1)
    order_R = jnp.argsort(slot_R, stable=True)
    home_NK = jnp.argsort(order_R).reshape(expert_NK.shape)
    home_NK = jnp.where(expert_NK < num_experts, home_NK, slot_R.size)
    size_E = jnp.sum(slot_R[:, None] == jnp.arange(num_experts)[None], axis=0, dtype=jnp.int32)
    return order_R, home_NK, size_E


def run_sorted(expert_fn, p, x_ND, expert_NK, gate_NK, num_experts: int):
    """y_ND = sum_k gate expert(x); slots with expert >= num_experts are empty and add nothing."""
    order_R, home_NK, size_E = by_expert(expert_NK, num_experts)
    rows_RD = expert_fn(p, permute(x_ND, order_R, home_NK), size_E)
    return unpermute(rows_RD, order_R, home_NK, gate_NK)
