"""What most selectors share: the best experts of a token, and slots filled with them."""

import jax
import jax.numpy as jnp

from moejax.ops.norm import to_sum_one


def ranked(choice_BTE, valid_BT, k: int):
    """The k best experts of every token, best first, and where there is one.

    Absent tokens have none, and a disallowed expert (choice -inf) is none.
    """
    best_BTK, expert_BTK = jax.lax.top_k(choice_BTE, k)
    return expert_BTK, valid_BT[..., None] & (best_BTK > -jnp.inf)


def filled(score_BTE, expert_BTK, full_BTK):
    """(experts, gates): the expert's own score where a slot is full; E and 0 where it is empty."""
    gate_BTK = jnp.take_along_axis(score_BTE, expert_BTK, axis=-1)
    E = score_BTE.shape[-1]
    return jnp.where(full_BTK, expert_BTK, E), jnp.where(full_BTK, gate_BTK, 0.0)


def shares(choice_BTE):
    """The choice as probabilities: its parts of the sum; what is negative or disallowed has none."""
    return to_sum_one(jnp.maximum(choice_BTE, 0.0))
