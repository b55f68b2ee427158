"""Router z-loss.

ST-MoE: Designing Stable and Transferable Sparse Expert Models (Zoph et al. 2022, arXiv 2202.08906), eq. 5:
mean over tokens of (logsumexp of the router's logits)^2, averaged over layers.

Differs from the paper: nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.losses.base import Loss, mean_over_layers


@dataclasses.dataclass(frozen=True)
class RouterZ(Loss):
    weight: float = 1e-3  # c_z

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        square_BT = jnp.square(jax.nn.logsumexp(out.routing.logit_BTE, axis=-1))  # eq. 5
        square_BT = jnp.where(batch.valid_BT, square_BT, 0.0)
        return {"square": jnp.sum(square_BT), "tokens": jnp.sum(batch.valid_BT, dtype=square_BT.dtype)}

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, lambda seen: seen["square"] / jnp.maximum(seen["tokens"], 1.0))
        return loss, state, {"loss/router_z": loss}
