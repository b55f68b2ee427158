"""Rows sorted by expert and brought back, on one device: what every dispatcher does between exchanges.

Neither direction scatters: both permutations are known, so forward and backward passes are gathers.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def permute(x_ND, order_R, home_NK):
    """Row r of the result is the token of flat slot order_R[r]; home_NK is the inverse of order_R."""
    return x_ND[order_R // home_NK.shape[1]]


def _permute_forward(x_ND, order_R, home_NK):
    return permute(x_ND, order_R, home_NK), home_NK


def _permute_backward(home_NK, d_rows_RD):
    return jnp.sum(d_rows_RD[home_NK], axis=1), None, None


permute.defvjp(_permute_forward, _permute_backward)


@jax.custom_vjp
def unpermute(rows_RD, order_R, home_NK):
    """The K rows of every token, [N, K, D]."""
    return rows_RD[home_NK]


def _unpermute_forward(rows_RD, order_R, home_NK):
    return unpermute(rows_RD, order_R, home_NK), (order_R, home_NK)


def _unpermute_backward(residual, d_rows_NKD):
    order_R, home_NK = residual
    return d_rows_NKD.reshape(home_NK.size, -1)[order_R], None, None


unpermute.defvjp(_unpermute_forward, _unpermute_backward)


def run_sorted(expert_fn, p, x_ND, expert_NK, gate_NK, num_experts: int):
    """y_ND = sum_k gate expert(x); slots with expert >= num_experts are empty and add nothing."""
    slot_R = expert_NK.reshape(-1)
    order_R = jnp.argsort(slot_R, stable=True)  # empty slots sort last
    home_NK = jnp.argsort(order_R).reshape(expert_NK.shape)
    size_E = jnp.sum(slot_R[:, None] == jnp.arange(num_experts)[None], axis=0, dtype=jnp.int32)
    rows_RD = expert_fn(p, permute(x_ND, order_R, home_NK), size_E)
    rows_NKD = unpermute(rows_RD, order_R, home_NK)
    full_NK = expert_NK < num_experts
    rows_NKD = jnp.where(full_NK[..., None], rows_NKD, 0)  # nobody promises what lies past the last group
    return jnp.einsum("NKD,NK->ND", rows_NKD, jnp.where(full_NK, gate_NK, 0).astype(rows_NKD.dtype))
