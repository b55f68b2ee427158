"""What losses and meters count of a router's decision. Choices before any drop are counted."""

import jax.numpy as jnp

from moejax.ops.norm import to_sum_one


def slots_by_row(routing):
    """Routed slots of each row per expert, [B, E]; empty slots count nowhere."""
    E = routing.score_BTE.shape[-1]
    hit_BTKE = routing.expert_BTK[..., None] == jnp.arange(E)[None, None, None]
    return jnp.sum(hit_BTKE, axis=(1, 2), dtype=_dtype(routing))


def shares(routing):
    """Scores of each token divided by their sum, [B, T, E]; at least float32."""
    return to_sum_one(routing.score_BTE.astype(_dtype(routing)))


def _dtype(routing):
    return jnp.promote_types(routing.score_BTE.dtype, jnp.float32)
