"""What the routers are doing, measured in every step: a Loss that weighs nothing."""

import dataclasses

import jax.numpy as jnp

from moejax.losses.base import Loss
from moejax.losses.counts import shares, slots_by_row


@dataclasses.dataclass(frozen=True)
class RouterMeter(Loss):
    """Metrics of the routers.

    router/load_LE        share of the routed slots per layer and expert
    router/load_max       its maximum over 1/E, mean over layers
    router/max_violation  the same of the worst layer, less 1: MaxVio of loss-free balancing (Wang et al.
                          2024, arXiv 2408.15664)
    router/entropy        of the score shares, nats
    router/dropped        share of the routed slots
    """

    weight: float = 0.0

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        share_BTE = shares(out.routing)
        full_BTK = out.routing.expert_BTK < share_BTE.shape[-1]
        entropy_BT = -jnp.sum(share_BTE * jnp.log(jnp.maximum(share_BTE, 1e-20)), axis=-1)
        return {
            "slots_E": jnp.sum(slots_by_row(out.routing), axis=0),
            "entropy": jnp.sum(jnp.where(batch.valid_BT, entropy_BT, 0.0)),
            "tokens": jnp.sum(batch.valid_BT, dtype=share_BTE.dtype),
            "dropped": jnp.sum(full_BTK & ~out.routing.kept_BTK, dtype=share_BTE.dtype),
        }

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        layers = [seen for group in stats for seen in group if seen]
        if not layers:
            return jnp.zeros(()), state, {}
        load = [_load(seen["slots_E"]) for seen in layers]
        most_L = jnp.concatenate([jnp.max(x, axis=-1) * x.shape[-1] for x in load])
        slots = sum(jnp.sum(seen["slots_E"]) for seen in layers)
        tokens = sum(jnp.sum(seen["tokens"]) for seen in layers)
        metrics = {
            "router/load_max": jnp.mean(most_L),
            "router/max_violation": jnp.max(most_L) - 1,
            "router/entropy": sum(jnp.sum(seen["entropy"]) for seen in layers) / jnp.maximum(tokens, 1.0),
            "router/dropped": sum(jnp.sum(seen["dropped"]) for seen in layers) / jnp.maximum(slots, 1.0),
        }
        if len({x.shape[-1] for x in load}) == 1:
            metrics["router/load_LE"] = jnp.concatenate(load)
        return jnp.zeros(()), state, metrics


def _load(slots_LE):
    """Share of a layer's slots per expert; 0 where nothing was routed."""
    return slots_LE / jnp.maximum(jnp.sum(slots_LE, axis=-1, keepdims=True), 1.0)
