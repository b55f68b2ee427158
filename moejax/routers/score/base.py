"""What several scorers need: activations, logits in float32, lengths."""

import jax
import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require

LINEAR_BELOW = -40.0  # here softplus(x) = exp(x) to the last bit of f64


def sqrt_softplus(logit_BTE):
    """sqrt(log(1 + exp(x))); its slope is finite even where the softplus underflows."""
    small_BTE = jnp.exp(0.5 * jnp.minimum(logit_BTE, LINEAR_BELOW))
    large_BTE = jnp.sqrt(jax.nn.softplus(jnp.maximum(logit_BTE, LINEAR_BELOW)))
    return jnp.where(logit_BTE < LINEAR_BELOW, small_BTE, large_BTE)


ACTIVATIONS = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "sqrt_softplus": sqrt_softplus,
    "relu": jax.nn.relu,
    "identity": lambda logit_BTE: logit_BTE,
}
SPARSE = ("relu",)  # scores of 0 say which experts are not wanted
SIGNED = ("identity",)  # scores are logits


def check_activation(name: str) -> None:
    """Refuse an activation that nobody knows."""
    known = ", ".join(ACTIVATIONS)
    require(name in ACTIVATIONS, f"scorer.activation={name!r} is not one of {known}")


def score_dtype(dtype) -> jnp.dtype:
    """In which scores are computed: at least f32."""
    return jnp.promote_types(dtype, jnp.float32)


def logits(x_BTD, w_DE):
    """x W in at least f32."""
    return weights.einsum("BTD,DE->BTE", x_BTD.astype(score_dtype(x_BTD.dtype)), w_DE)


def unit(x, axis: int = -1, eps: float = 1e-12):
    """`x` at length 1 along `axis`; zero stays zero, with slope zero."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


def noise(key, like_BTE):
    """Unit normal noise for every score; the layer's own `key` is left to the selector."""
    where = sharding.out("BTE")
    return jax.random.normal(jax.random.fold_in(key, 0), like_BTE.shape, like_BTE.dtype, out_sharding=where)
