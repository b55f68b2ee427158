"""Normalisation: of activations to a mean square of 1, of scores to a sum of 1."""

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


def to_sum_one(score_BTE):
    """Scores >= 0 divided by their sum over the last dim, however small they are; zeros stay zeros.

    The gradient of a quotient has the square of the divisor, which underflows in f32 for sums below 1e-19;
    the largest score as a unit keeps the divisor near 1.
    """
    top_BT1 = jax.lax.stop_gradient(jnp.max(score_BTE, axis=-1, keepdims=True))
    score_BTE = score_BTE / jnp.maximum(top_BT1, jnp.finfo(score_BTE.dtype).tiny)
    sum_BT1 = jnp.sum(score_BTE, axis=-1, keepdims=True)
    return score_BTE / jnp.where(sum_BT1 == 0.0, 1.0, sum_BT1)
