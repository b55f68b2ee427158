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


def seen_by_row(routing, valid_BT):
    """Per row: routed slots per expert [B, E], summed score shares [B, E], and valid tokens [B]."""
    share_BTE = jnp.where(valid_BT[..., None], shares(routing), 0.0)
    return {
        "slots": slots_by_row(routing),
        "share": jnp.sum(share_BTE, axis=1),
        "tokens": jnp.sum(valid_BT, axis=1, dtype=share_BTE.dtype),
    }


def seen_by_batch(routing, valid_BT):
    """`seen_by_row`, summed over the rows."""
    return {name: jnp.sum(value, axis=0) for name, value in seen_by_row(routing, valid_BT).items()}


def product(seen):
    """E * sum_e f_e P_e over the last dim of the sums in `seen`; 0 where nothing was seen."""
    slots_E, share_E = seen["slots"], seen["share"]
    f_E = slots_E / jnp.maximum(jnp.sum(slots_E, axis=-1, keepdims=True), 1.0)
    P_E = share_E / jnp.maximum(seen["tokens"][..., None], 1.0)
    return slots_E.shape[-1] * jnp.sum(f_E * P_E, axis=-1)


def _dtype(routing):
    return jnp.promote_types(routing.score_BTE.dtype, jnp.float32)
