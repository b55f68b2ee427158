"""Normalisation: of activations to a mean square of 1, of scores to a sum of 1."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moejax.specs import Constant, Spec


def specs(m, width: int | None = None):
    """Parameters of one norm of the kind `m.norm`, over `width` values; over the model's width by default."""
    shape = (m.width if width is None else width,)
    return jax.tree.map(
        lambda start: Spec(shape, (None,), Constant(start), m.param_dtype), NORMS[m.norm].start
    )


def apply(p, x_BTD, m):
    """The norm of the kind `m.norm` over the last dim, in at least f32."""
    return NORMS[m.norm].apply(x_BTD, p, m.norm_eps)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x_BTD, scale_D, eps: float):
    """Root-mean-square norm over the last dim (Zhang and Sennrich 2019, arXiv 1910.07467), in at least f32.

    Its backward pass keeps the inputs alone.
    """
    x = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return (x * jnp.expand_dims(scale_D, range(x.ndim - 1))).astype(x_BTD.dtype)


def rms_norm_plus_one(x_BTD, scale_D, eps: float):
    """`rms_norm` whose parameter is what its scale exceeds 1 by; the sum is not rounded to half precision."""
    return rms_norm(x_BTD, 1.0 + scale_D.astype(jnp.promote_types(scale_D.dtype, jnp.float32)), eps)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def layer_norm(x_BTD, p, eps: float):
    """To mean 0 and variance 1, then times p["scale"] plus p["bias"] (Ba et al. 2016, arXiv 1607.06450).

    In at least f32; its backward pass keeps the inputs alone.
    """
    x = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    scale, bias = (jnp.expand_dims(p[name], range(x.ndim - 1)) for name in ("scale", "bias"))
    return (x * scale + bias).astype(x_BTD.dtype)


class Kind(NamedTuple):
    start: Any  # what each parameter is before training
    apply: Callable  # (x, parameters, eps) -> like x


# By `ModelConfig.norm`.
NORMS = {
    "rms": Kind(1.0, rms_norm),
    "rms_plus_one": Kind(0.0, rms_norm_plus_one),
    "layer": Kind({"scale": 1.0, "bias": 0.0}, layer_norm),
}


def to_sum_one(score_BTE):
    """Scores >= 0 divided by their sum over the last dim, however small they are; zeros stay zeros.

    The gradient of a quotient has the square of the divisor, which underflows in f32 for sums below 1e-19;
    the largest score as a unit keeps the divisor near 1.
    """
    top_BT1 = jax.lax.stop_gradient(jnp.max(score_BTE, axis=-1, keepdims=True))
    score_BTE = score_BTE / jnp.maximum(top_BT1, jnp.finfo(score_BTE.dtype).tiny)
    sum_BT1 = jnp.sum(score_BTE, axis=-1, keepdims=True)
    return score_BTE / jnp.where(sum_BT1 == 0.0, 1.0, sum_BT1)
