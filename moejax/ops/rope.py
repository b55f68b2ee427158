"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split pairing."""

import jax.numpy as jnp


def rotate(x_BTHA, pos_BT, theta: float):
    """Turn the pair (a, a + A/2) of every head by pos * theta^(-2a/A) radians, in at least f32."""
    half = x_BTHA.shape[-1] // 2
    dtype = jnp.promote_types(x_BTHA.dtype, jnp.float32)
    turn_A = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle_BTHA = (pos_BT[..., None].astype(dtype) * turn_A[None, None])[:, :, None]
    sin_BTHA, cos_BTHA = jnp.sin(angle_BTHA), jnp.cos(angle_BTHA)
    low, high = jnp.split(x_BTHA.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([low * cos_BTHA - high * sin_BTHA, high * cos_BTHA + low * sin_BTHA], axis=-1)
    return turned.astype(x_BTHA.dtype)
