"""What the routers are doing, measured in every step: a Loss that weighs nothing."""

import dataclasses

import jax.numpy as jnp

from moejax.losses.base import Loss


@dataclasses.dataclass(frozen=True)
class RouterMeter(Loss):
    """Metrics router/load_LE (share of the routed slots per layer and expert), router/load_max (its maximum
    over 1/E, mean over layers), router/entropy (of the score shares, nats), router/dropped (share of slots)."""

    weight: float = 0.0

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        routing, E = out.routing, out.routing.score_BTE.shape[-1]
        valid_BT = batch.valid_BT
        full_BTK = routing.expert_BTK < E
        share_BTE = routing.score_BTE / jnp.maximum(jnp.sum(routing.score_BTE, axis=-1, keepdims=True), 1e-20)
        entropy_BT = -jnp.sum(share_BTE * jnp.log(jnp.maximum(share_BTE, 1e-20)), axis=-1)
        hit_BTKE = routing.expert_BTK[..., None] == jnp.arange(E)[None, None, None]
        dtype = share_BTE.dtype
        return {
            "slots_E": jnp.sum(hit_BTKE, axis=(0, 1, 2), dtype=dtype),
            "entropy": jnp.sum(jnp.where(valid_BT, entropy_BT, 0.0)),
            "tokens": jnp.sum(valid_BT, dtype=dtype),
            "dropped": jnp.sum(full_BTK & ~routing.kept_BTK, dtype=dtype),
        }

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        layers = [seen for group in stats for seen in group if seen]
        if not layers:
            return jnp.zeros(()), state, {}
        load = [seen["slots_E"] / jnp.maximum(jnp.sum(seen["slots_E"], axis=-1, keepdims=True), 1.0) for seen in layers]
        slots = sum(jnp.sum(seen["slots_E"]) for seen in layers)
        tokens = sum(jnp.sum(seen["tokens"]) for seen in layers)
        metrics = {
            "router/load_max": jnp.mean(jnp.concatenate([jnp.max(x, axis=-1) * x.shape[-1] for x in load])),
            "router/entropy": sum(jnp.sum(seen["entropy"]) for seen in layers) / jnp.maximum(tokens, 1.0),
            "router/dropped": sum(jnp.sum(seen["dropped"]) for seen in layers) / jnp.maximum(slots, 1.0),
        }
        if len({x.shape[-1] for x in load}) == 1:
            metrics["router/load_LE"] = jnp.concatenate(load)
        return jnp.zeros(()), state, metrics
