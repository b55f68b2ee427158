"""Selectors on a few tokens whose scores a reader can follow."""

import jax.numpy as jnp
import numpy as np


def select(selector, score_TE, choice_TE=None, valid_T=None, p=None):
    """(experts, gates, extra) of one row of tokens; the choice is by the score unless given."""
    score_BTE = jnp.array(score_TE, jnp.float32)[None]
    choice_BTE = score_BTE if choice_TE is None else jnp.array(choice_TE, jnp.float32)[None]
    valid_BT = jnp.ones((1, len(score_TE)), bool) if valid_T is None else jnp.array(valid_T)[None]
    expert_BTK, gate_BTK, extra = selector.select(p or {}, score_BTE, choice_BTE, valid_BT, None)
    return expert_BTK[0].tolist(), np.asarray(gate_BTK[0]), {name: x[0].tolist() for name, x in extra.items()}


def weights(selector, score_TE, **kwargs):
    """Gate of every expert, [T, E]; 0 where it was not chosen."""
    experts, gates, _ = select(selector, score_TE, **kwargs)
    E = len(score_TE[0])
    weight_TE = np.zeros((len(score_TE), E + 1), np.float32)
    for t, row in enumerate(experts):
        weight_TE[t, row] = gates[t]
    return weight_TE[:, :E]
