"""Normalisation."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x_BTD, scale_D, eps: float):
    """Root-mean-square norm over the last dim (Zhang and Sennrich 2019, arXiv 1910.07467), in at least f32.

    Its backward pass keeps the inputs alone.
    """
    x = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return (x * jnp.expand_dims(scale_D, range(x.ndim - 1))).astype(x_BTD.dtype)
