"""From logits to a token, and how likely it was; every row has its own settings and its own noise."""

import jax
import jax.numpy as jnp
from flax import struct

TOP = 20  # most likely tokens whose log-probabilities are told
PART = 256  # numbers, at most, in which `best` looks for a place


@struct.dataclass
class SamplingRows:
    """The settings of every row."""

    temperature_B: jax.Array  # f32; 0 takes the most likely token
    top_k_B: jax.Array  # i32; 0 keeps all
    top_p_B: jax.Array  # f32; 1 keeps all
    seed_B: jax.Array  # u32
    min_p_B: jax.Array  # f32; 0 keeps all


def sample(logits_BV, settings: SamplingRows, pos_B):
    """i32[B]: the token that takes position `pos_B`, drawn from softmax(logits / temperature).

    The noise of a row is a function of its seed and position alone.
    """
    greedy_B = best(logits_BV)
    hot_B = settings.temperature_B > 0

    def draw():
        below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)  # so that no temperature overflows
        scaled_BV = below_BV / jnp.where(hot_B, settings.temperature_B, 1.0)[:, None]
        narrowed_B = hot_B & ((settings.top_k_B > 0) | (settings.top_p_B < 1))
        kept_BV = jax.lax.cond(  # sorting the vocabulary costs more than a small model's step
            jnp.any(narrowed_B),
            lambda: narrow(scaled_BV, settings.top_k_B, settings.top_p_B),
            lambda: scaled_BV,
        )
        likely_BV = scaled_BV >= jnp.log(settings.min_p_B)[:, None]  # the most likely one is at 0
        kept_BV = jnp.where(likely_BV, kept_BV, -jnp.inf)
        drawn_B = best(kept_BV + noise(settings.seed_B, pos_B, kept_BV.shape[-1]))
        return jnp.where(hot_B, drawn_B, greedy_B)

    return jax.lax.cond(jnp.any(hot_B), draw, lambda: greedy_B)


def best(x_BV):
    """i32[B]: the place of the largest number, the first of several.

    A maximum is many times faster than an argmax on CPU, so it says in which part of the row to look.
    """
    B, V = x_BV.shape
    width = next(width for width in range(min(PART, V), 0, -1) if V % width == 0)
    x_BNW = jnp.reshape(x_BV, (B, V // width, width))
    part_B = jnp.argmax(jnp.max(x_BNW, axis=-1), axis=-1).astype(jnp.int32)
    own_BW = jnp.take_along_axis(x_BNW, part_B[:, None, None], axis=1)[:, 0]
    return part_B * width + jnp.argmax(own_BW, axis=-1).astype(jnp.int32)


@struct.dataclass
class Likelihoods:
    """Log-probabilities (nats) by the model itself: of a token, and of the most likely ones in its place."""

    log_prob_B: jax.Array  # f32
    top_token_BK: jax.Array  # i32; K is TOP, or the whole vocabulary if that is less
    top_log_prob_BK: jax.Array  # f32, falling


def likelihoods(logits_BV, token_B, wanted) -> Likelihoods:
    """What the model thought of `token_B`; zeros, at no cost, unless the bool scalar `wanted`."""

    def known():
        total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
        own_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
        top_BK, top_token_BK = jax.lax.top_k(logits_BV, min(TOP, logits_BV.shape[-1]))
        return Likelihoods((own_B1 - total_B1)[:, 0], top_token_BK, top_BK - total_B1)

    def unknown():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(known))

    return jax.lax.cond(wanted, known, unknown)


def narrow(logits_BV, top_k_B, top_p_B):
    """-inf outside the `top_k` most likely tokens, then outside the fewest of them that reach `top_p`.

    Tokens as likely as the last one kept are kept too.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    share_BV = jax.nn.softmax(jnp.where(jnp.arange(V)[None] < k_B[:, None], sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    reach_B = jnp.sum(before_BV < top_p_B[:, None], axis=-1)
    # Rounding must neither drop the first token of a tiny top_p nor cut the tail of top_p = 1.
    count_B = jnp.minimum(k_B, jnp.where(top_p_B < 1, jnp.maximum(reach_B, 1), V))
    last_B1 = jnp.take_along_axis(sorted_BV, count_B[:, None] - 1, axis=-1)
    return jnp.where(logits_BV >= last_B1, logits_BV, -jnp.inf)


def noise(seed_B, pos_B, num: int):
    """Gumbel noise f32[B, num]: adding it turns argmax into a draw from the softmax."""

    def one(seed, pos):
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), pos), (num,), jnp.float32)

    return jax.vmap(one)(seed_B, pos_B)
