"""Rows sorted by expert and brought back, on one device: what every dispatcher does between exchanges.

Neither direction scatters: both permutations are known, so forward and backward passes are gathers. A place
past the end is nowhere: what is brought back from there is zero, and so is its gradient.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def permute(x_ND, order_R, home_NK):
    """Row r of the result is the token of flat slot order_R[r]; home_NK is the inverse of order_R."""
    return x_ND.at[order_R // home_NK.shape[1]].get(mode="clip")


def _permute_forward(x_ND, order_R, home_NK):
    return permute(x_ND, order_R, home_NK), home_NK


def _permute_backward(home_NK, d_rows_RD):
    return jnp.sum(_rows(d_rows_RD, home_NK), axis=1), None, None


permute.defvjp(_permute_forward, _permute_backward)


@jax.custom_vjp
def unpermute(rows_RD, order_R, home_NK):
    """The K rows of every token, [N, K, D]; zeros for a slot whose home is past the end."""
    return _rows(rows_RD, home_NK)


def _unpermute_forward(rows_RD, order_R, home_NK):
    return unpermute(rows_RD, order_R, home_NK), (order_R, home_NK)


def _unpermute_backward(residual, d_rows_NKD):
    order_R, home_NK = residual
    return _rows(d_rows_NKD.reshape(home_NK.size, -1), order_R), None, None


unpermute.defvjp(_unpermute_forward, _unpermute_backward)


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
    return weigh(unpermute(rows_RD, order_R, home_NK), gate_NK, expert_NK < num_experts)


def weigh(rows_NKD, gate_NK, full_NK):
    """The sum over a token's slots, each times its gate; nobody looks at the gate of an empty slot."""
    return jnp.einsum("NKD,NK->ND", rows_NKD, jnp.where(full_NK, gate_NK, 0).astype(rows_NKD.dtype))


def _rows(x_RD, at):
    return x_RD.at[at].get(mode="fill", fill_value=0)
