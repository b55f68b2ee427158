"""Loss-free balancing: a controller instead of a gradient.

Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts (Wang et al. 2024, arXiv 2408.15664),
algorithm 1: each expert has a bias that is added to the scores for the choice only; after every optimiser step
b_e += u * sign(mean load - load_e).

Differs from the paper: nothing; the sign is taken once per step from counts summed over micro-batches and devices.
"""

import dataclasses

import jax.numpy as jnp

from moejax.losses.balance import seen_by_row
from moejax.losses.base import Loss
from moejax.seams import Side


@dataclasses.dataclass(frozen=True)
class LossFreeBias(Loss):
    weight: float = 0.0  # it adds nothing to the objective
    rate: float = 1e-3  # u

    def init(self, m):
        return tuple(
            tuple({"bias_LE": jnp.zeros((group.repeat, block.ffn.num_experts))} if _routes(block) else {} for block in group.blocks)
            for group in m.groups
        )

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        return {"slots": jnp.sum(seen_by_row(out.routing, batch.valid_BT)["slots"], axis=0)}

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        state = tuple(
            tuple(self._update(bias, seen) for bias, seen in zip(*group, strict=True))
            for group in zip(state, stats, strict=True)
        )
        largest = max((jnp.max(jnp.abs(block["bias_LE"])) for group in state for block in group if block), default=0.0)
        return jnp.zeros(()), state, {"router/bias_max": largest}

    def _update(self, bias, seen):
        if not bias:
            return bias
        slots_LE = seen["slots"]
        error_LE = jnp.mean(slots_LE, axis=-1, keepdims=True) - slots_LE
        return {"bias_LE": bias["bias_LE"] + self.rate * jnp.sign(error_LE).astype(bias["bias_LE"].dtype)}

    def side(self, state):
        def one(block):
            return Side(prefer_BE=block["bias_LE"][:, None]) if block else Side()

        return tuple(tuple(one(block) for block in group) for group in state)


def _routes(block) -> bool:
    return hasattr(block.ffn, "num_experts")
