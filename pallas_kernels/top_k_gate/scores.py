"""How logits become scores, by name, and the way back of gradients."""

import jax
import jax.numpy as jnp

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def slope(score: str, score_TE, d_score_TE) -> jax.Array:
    """The gradient in the logits, from the scores alone."""
    if score == "sigmoid":
        return d_score_TE * score_TE * (1 - score_TE)
    return score_TE * (d_score_TE - jnp.sum(d_score_TE * score_TE, axis=1, keepdims=True))
