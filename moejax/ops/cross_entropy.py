"""Cross-entropy of a large vocabulary without keeping its logits.

The logits of a chunk of positions are made, used for the loss and for both gradients, and dropped: the sum of
weighted losses has a gradient that is known up to one scalar, so the forward pass computes it while the
logits are still in cache. Three matmuls in all, none of them twice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from moejax import sharding, weights

CHUNK_TOKENS, MAX_CHUNKS = 512, 8


@struct.dataclass
class Unembedding:
    """From hidden states to logits: scale * (hidden table^T + bias)."""

    table_VD: Any
    bias_V: Any = None
    scale: float = struct.field(pytree_node=False, default=1.0)

    def logits(self, hidden_BTD):
        """In at least f32; the vocabulary may be split over devices."""
        logits_BTV = weights.table_product(hidden_BTD, self.table_VD)
        logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
        if self.bias_V is not None:
            logits_BTV += self.bias_V[None, None]
        return logits_BTV * self.scale


@jax.custom_vjp
def weighted_nll(hidden_BTD, unembedding: Unembedding, target_BT, weight_BT):
    """Sum over positions of weight * -log softmax(logits)[target], in at least f32.

    The vocabulary may be split over devices. Targets and weights have no gradient.
    """
    chunks = _chunks(hidden_BTD, target_BT, weight_BT)
    return sum(_chunk_nll(x_BTD, unembedding, *rest)[0] for x_BTD, *rest in chunks)


def _forward(hidden_BTD, unembedding, target_BT, weight_BT):
    total, d_hidden, d_table_DV, d_bias_V = 0.0, [], 0.0, 0.0
    table_VD, bias_V = unembedding.table_VD, unembedding.bias_V
    precise = jnp.promote_types(table_VD.dtype, jnp.float32)
    for x_BTD, target, weight in _chunks(hidden_BTD, target_BT, weight_BT):
        nll, share_BTV, hit_BTV = _chunk_nll(x_BTD, unembedding, target, weight)
        d_logits_BTV = (share_BTV - hit_BTV) * unembedding.scale * weight[..., None]
        total += nll
        if bias_V is not None:
            d_bias_V += jnp.sum(d_logits_BTV, axis=(0, 1))
        d_logits_BTV = d_logits_BTV.astype(x_BTD.dtype)
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
    d_bias_V = None if bias_V is None else d_bias_V.astype(bias_V.dtype)
    slopes = jnp.concatenate(d_hidden, axis=1), unembedding.replace(table_VD=d_table_VD, bias_V=d_bias_V)
    return total, slopes


def _backward(slopes, d_total):
    return *jax.tree.map(lambda slope: (slope * d_total).astype(slope.dtype), slopes), None, None


weighted_nll.defvjp(_forward, _backward)


def _chunks(hidden_BTD, *columns_BT):
    """Chunks of positions with about CHUNK_TOKENS tokens each."""
    B, T = hidden_BTD.shape[:2]
    num_chunks = max(min(B * T // CHUNK_TOKENS, MAX_CHUNKS, T), 1)
    for i in range(num_chunks):
        own = slice(i * T // num_chunks, (i + 1) * T // num_chunks)
        yield hidden_BTD[:, own], *(column_BT[:, own] for column_BT in columns_BT)


def _chunk_nll(x_BTD, unembedding, target_BT, weight_BT):
    """(weighted sum, softmax, one-hot targets) of one chunk."""
    logits_BTV = unembedding.logits(x_BTD)
    top_BT1 = jnp.max(logits_BTV, axis=-1, keepdims=True)
    share_BTV = jnp.exp(logits_BTV - top_BT1)
    sum_BT1 = jnp.sum(share_BTV, axis=-1, keepdims=True)
    hit_BTV = jnp.arange(logits_BTV.shape[-1])[None, None] == target_BT[..., None]
    hit_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
    nll_BT = (jnp.log(sum_BT1) + top_BT1)[..., 0] - hit_BT
    return jnp.sum(nll_BT * weight_BT.astype(nll_BT.dtype)), share_BTV / sum_BT1, hit_BTV
