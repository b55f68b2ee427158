"""A budget for what a token's route costs.

Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models (Alizadeh et al. 2024,
arXiv 2410.10846), section 3.3: (mean over layers and tokens of P_big - budget)^2, one term per sequence, then
the mean over sequences; so no sequence can take the share of another.

Differs from the paper: each expert has a cost of its own; with costs (0, 1) the expected cost is P_big. What
a router gives to no expert at all, as for skipping a layer, costs nothing.
"""

import dataclasses

import jax.numpy as jnp

from moejax.config import require
from moejax.losses.base import Loss, seen_layers


@dataclasses.dataclass(frozen=True)
class Budget(Loss):
    weight: float = 1.0  # alpha
    target: float = 0.5  # mean cost per token and layer
    cost: tuple[float, ...] = (0.0, 1.0)  # of each expert

    def __post_init__(self):
        low, high = min(0.0, *self.cost), max(0.0, *self.cost)  # a token that skips costs nothing
        require(
            low <= self.target <= high,
            f"losses[].target={self.target} is out of reach of losses[].cost={self.cost}; choose a target "
            f"between {low} and {high}",
        )

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        score_BTE = out.routing.score_BTE
        E = score_BTE.shape[-1]
        require(
            len(self.cost) == E,
            f"losses[].cost={self.cost} is for {len(self.cost)} experts, the layer has {E}",
        )
        cost_BT = score_BTE.astype(jnp.promote_types(score_BTE.dtype, jnp.float32)) @ jnp.array(self.cost)
        cost_B = jnp.sum(jnp.where(batch.valid_BT, cost_BT, 0.0), axis=1)
        return {"cost_B": cost_B, "tokens_B": jnp.sum(batch.valid_BT, axis=1, dtype=cost_B.dtype)}

    def stats(self, params, m, probes, output, batch):
        layers = seen_layers(probes)
        if not layers:
            return {}
        cost_B, tokens_B = (
            sum(jnp.sum(seen[name], axis=0) for seen in layers) for name in ("cost_B", "tokens_B")
        )
        there_B = tokens_B > 0
        mean_B = cost_B / jnp.where(there_B, tokens_B, 1.0)
        return {
            "square": jnp.sum(jnp.where(there_B, jnp.square(mean_B - self.target), 0.0)),
            "mean": jnp.sum(mean_B),
            "rows": jnp.sum(there_B, dtype=mean_B.dtype),
        }

    def total(self, stats, state):
        if not stats:
            return jnp.zeros(()), state, {}
        rows = jnp.maximum(stats["rows"], 1.0)
        loss = stats["square"] / rows
        return loss, state, {"loss/budget": loss, "router/cost": stats["mean"] / rows}
