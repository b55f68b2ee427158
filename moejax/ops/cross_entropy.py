"""Cross-entropy of a large vocabulary without keeping its logits.

The logits of a chunk of positions are made, used for the loss and for both gradients, and dropped: the sum of
weighted losses has a gradient that is known up to one scalar, so the forward pass computes it while the
logits are still in cache. Three matmuls in all, none of them twice.
"""

import jax
import jax.numpy as jnp

from moejax import sharding

CHUNK_TOKENS, MAX_CHUNKS = 512, 8


@jax.custom_vjp
def weighted_nll(hidden_BTD, table_VD, target_BT, weight_BT):
    """Sum over positions of weight * -log softmax(hidden table^T)[target], in at least f32.

    The vocabulary may be split over devices. Targets and weights have no gradient.
    """
    chunks = _chunks(hidden_BTD, target_BT, weight_BT)
    return sum(_chunk_nll(x_BTD, table_VD, *rest)[0] for x_BTD, *rest in chunks)


def _forward(hidden_BTD, table_VD, target_BT, weight_BT):
    total, d_hidden, d_table_DV = 0.0, [], 0.0
    precise = jnp.promote_types(table_VD.dtype, jnp.float32)
    for x_BTD, target, weight in _chunks(hidden_BTD, target_BT, weight_BT):
        nll, share_BTV, hit_BTV = _chunk_nll(x_BTD, table_VD, target, weight)
        d_logits_BTV = ((share_BTV - hit_BTV) * weight[..., None]).astype(x_BTD.dtype)
        total += nll
        d_hidden.append(jnp.einsum("BTV,VD->BTD", d_logits_BTV, table_VD, out_sharding=sharding.out("BTD")))
        # As [D, V], because a product that contracts the rows of both sides is slow as [V, D] on CPU.
        d_table_DV += jnp.einsum(
            "BTD,BTV->DV",
            x_BTD,
            d_logits_BTV,
            preferred_element_type=precise,
            out_sharding=sharding.out("DV"),
        )
    d_table_VD = jax.lax.optimization_barrier(d_table_DV.astype(table_VD.dtype)).T
    return total, (jnp.concatenate(d_hidden, axis=1), d_table_VD)


def _backward(slopes, d_total):
    d_hidden_BTD, d_table_VD = slopes
    return tuple((slope * d_total).astype(slope.dtype) for slope in (d_hidden_BTD, d_table_VD)) + (None, None)


weighted_nll.defvjp(_forward, _backward)


def _chunks(hidden_BTD, *columns_BT):
    """Chunks of positions with about CHUNK_TOKENS tokens each."""
    B, T = hidden_BTD.shape[:2]
    num_chunks = max(min(B * T // CHUNK_TOKENS, MAX_CHUNKS, T), 1)
    for i in range(num_chunks):
        own = slice(i * T // num_chunks, (i + 1) * T // num_chunks)
        yield hidden_BTD[:, own], *(column_BT[:, own] for column_BT in columns_BT)


def _chunk_nll(x_BTD, table_VD, target_BT, weight_BT):
    """(weighted sum, softmax, one-hot targets) of one chunk."""
    logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, out_sharding=sharding.out("BTV"))
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    top_BT1 = jnp.max(logits_BTV, axis=-1, keepdims=True)
    share_BTV = jnp.exp(logits_BTV - top_BT1)
    sum_BT1 = jnp.sum(share_BTV, axis=-1, keepdims=True)
    hit_BTV = jnp.arange(logits_BTV.shape[-1])[None, None] == target_BT[..., None]
    hit_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
    nll_BT = (jnp.log(sum_BT1) + top_BT1)[..., 0] - hit_BT
    return jnp.sum(nll_BT * weight_BT.astype(nll_BT.dtype)), share_BTV / sum_BT1, hit_BTV
