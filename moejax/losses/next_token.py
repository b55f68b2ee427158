"""Next-token prediction: the mean over weighted targets of -log p(target), in nats.

The mean is over all targets of the whole batch, so neither micro-batches nor devices change it.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from moejax.losses.base import Loss
from moejax.model.forward import unembedding
from moejax.ops.cross_entropy import weighted_nll


@dataclasses.dataclass(frozen=True)
class NextToken(Loss):
    measures_text: ClassVar[bool] = True

    def stats(self, params, m, probes, output, batch):
        hidden_BTD = output.hidden_BTD.astype(m.dtype)
        nll = weighted_nll(hidden_BTD, unembedding(params, m), batch.target_BT, batch.weight_BT)
        return {"nll": nll, "weight": jnp.sum(batch.weight_BT, dtype=nll.dtype)}

    def total(self, stats, state):
        loss = stats["nll"] / jnp.maximum(stats["weight"], 1.0)
        return loss, state, {"loss/next_token": loss}
