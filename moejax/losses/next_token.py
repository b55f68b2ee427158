"""Next-token prediction: the mean over weighted targets of -log p(target), in nats.

The mean is over all targets of the whole batch, so neither micro-batches nor devices change it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.losses.base import Loss


@dataclasses.dataclass(frozen=True)
class NextToken(Loss):
    def stats(self, params, m, probes, output, batch):
        nll_BT = token_nll(output.logits_BTV, batch.target_BT)
        weight_BT = batch.weight_BT.astype(nll_BT.dtype)
        return {"nll": jnp.sum(nll_BT * weight_BT), "weight": jnp.sum(weight_BT)}

    def total(self, stats, state):
        loss = stats["nll"] / jnp.maximum(stats["weight"], 1.0)
        return loss, state, {"loss/next_token": loss}


def token_nll(logits_BTV, target_BT):
    """-log softmax(logits)[target] of every position, [B, T]; works with the vocabulary split over devices."""
    top_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    sum_BT = jnp.sum(jnp.exp(logits_BTV - top_BT[..., None]), axis=-1)
    hit_BTV = jnp.arange(logits_BTV.shape[-1])[None, None] == target_BT[..., None]
    hit_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
    return jnp.log(sum_BT) + top_BT - hit_BT
