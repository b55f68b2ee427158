"""Load balance by importance and expected load.

Outrageously Large Neural Networks (Shazeer et al. 2017, arXiv 1701.06538), appendix A, in the form of Tutel
(arXiv 2206.03382): (CV^2(importance) + CV^2(load)) / 2, averaged over layers. The importance of an expert is
the sum of its scores; its load is the expected number of tokens that reach their k-th chosen logit under
fresh noise, sum_t Phi((logit_te - k-th logit_t) / std), with std = noise / E; CV is the standard deviation
over experts divided by the mean.

Differs from the papers: both sides of the difference are logits (Tutel's code subtracts logits from scores),
as the choice saw them, noise included; sums are over the whole batch, not over one device's tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.losses.base import Loss, mean_over_layers
from moejax.losses.counts import shares


@dataclasses.dataclass(frozen=True)
class LoadImportance(Loss):
    weight: float = 1e-2
    noise: float = 1.0  # that of the scorer: E times the standard deviation of what it adds to a logit

    def __post_init__(self):
        require(
            self.noise > 0,
            f"losses[].noise={self.noise} must be positive: without noise a load has no slope; give it and "
            "the scorer the same noise, or use GShard",
        )

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        routed_BT1 = jnp.any(_full(out.routing), axis=-1, keepdims=True) & batch.valid_BT[..., None]
        share_BTE = jnp.where(routed_BT1, shares(out.routing), 0.0)
        load_BTE = jnp.where(routed_BT1, self._reach(out.routing), 0.0)
        return {"importance": jnp.sum(share_BTE, axis=(0, 1)), "load": jnp.sum(load_BTE, axis=(0, 1))}

    def _reach(self, routing):
        """How likely each expert's logit reaches the lowest chosen one of its token."""
        logit_BTE, full_BTK = routing.logit_BTE, _full(routing)
        E = logit_BTE.shape[-1]
        chosen_BTK = jnp.take_along_axis(logit_BTE, jnp.minimum(routing.expert_BTK, E - 1), axis=-1)
        highest_BT1 = jax.lax.stop_gradient(jnp.max(logit_BTE, axis=-1, keepdims=True))
        lowest_BT1 = jnp.min(jnp.where(full_BTK, chosen_BTK, highest_BT1), axis=-1, keepdims=True)
        return jax.scipy.stats.norm.cdf((logit_BTE - lowest_BT1) / (self.noise / E))

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        def both(seen):
            return (_square_cv(seen["importance"]) + _square_cv(seen["load"])) / 2

        loss = mean_over_layers(stats, both)
        return loss, state, {"loss/load_importance": loss}


def _full(routing):
    return routing.expert_BTK < routing.score_BTE.shape[-1]


def _square_cv(sum_E):
    """Variance over squared mean, along the last dim; 0 where nothing was seen."""
    mean_E = jnp.mean(sum_E, axis=-1, keepdims=True)
    return jnp.mean(jnp.square(sum_E / jnp.where(mean_E == 0.0, 1.0, mean_E) - jnp.sign(mean_E)), axis=-1)
