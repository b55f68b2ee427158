"""Loss-free balancing: a controller instead of a gradient.

Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts (Wang et al. 2024, arXiv 2408.15664),
algorithm 1: each expert has a bias that is added to the scores for the choice only; after every optimiser
step b_e += u * sign(mean load - load_e).

Differs from the paper: nothing; the sign is taken once per step from counts summed over micro-batches and
devices.
"""

import dataclasses
import functools

import jax.numpy as jnp

from moejax.losses.base import Loss
from moejax.losses.counts import slots_by_row
from moejax.seams import Side


@dataclasses.dataclass(frozen=True)
class LossFreeBias(Loss):
    weight: float = 0.0  # it adds nothing to the objective
    rate: float = 1e-3  # u

    def init(self, m):
        def bias(block, repeat):
            num_experts = getattr(block.ffn, "num_experts", None)  # a dense ffn has none
            return {} if num_experts is None else {"bias_LE": jnp.zeros((repeat, num_experts))}

        return tuple(tuple(bias(block, group.repeat) for block in group.blocks) for group in m.groups)

    def probe(self, out, batch):
        return {} if out.routing is None else {"slots": jnp.sum(slots_by_row(out.routing), axis=0)}

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        state = tuple(
            tuple(self._update(bias, seen) for bias, seen in zip(*group, strict=True))
            for group in zip(state, stats, strict=True)
        )
        largest = [jnp.max(jnp.abs(block["bias_LE"])) for group in state for block in group if block]
        largest = functools.reduce(jnp.maximum, largest, jnp.zeros(()))
        return jnp.zeros(()), state, {"router/bias_max": largest}

    def _update(self, bias, seen):
        if not (bias and seen):  # a mixture that routes no tokens has experts, but no slots
            return bias
        slots_LE = seen["slots"]
        error_LE = jnp.mean(slots_LE, axis=-1, keepdims=True) - slots_LE
        return {"bias_LE": bias["bias_LE"] + self.rate * jnp.sign(error_LE).astype(bias["bias_LE"].dtype)}

    def side(self, state):
        def one(block):
            return Side(prefer_BE=block["bias_LE"][:, None]) if block else Side()

        return tuple(tuple(one(block) for block in group) for group in state)
