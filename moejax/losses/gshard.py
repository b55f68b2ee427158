"""Load balance of first choices.

GShard: Scaling Giant Models with Conditional Computation (Lepikhin et al. 2020, arXiv 2006.16668), in the
form of Tutel (arXiv 2206.03382): E * sum_e (mean score of e) * (share of the tokens whose first choice is e),
averaged over layers; 1 at perfect balance.

Differs from the papers: means are over the whole batch, not over one device's tokens; scores that do not sum
to 1 are divided by their sum. The first choice is slot 0, whatever its gate, and counts though it be dropped.
"""

import dataclasses

from moejax.losses.base import Loss, mean_over_layers
from moejax.losses.counts import product, seen_by_batch


@dataclasses.dataclass(frozen=True)
class GShard(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        first = out.routing.replace(expert_BTK=out.routing.expert_BTK[..., :1])
        return seen_by_batch(first, batch.valid_BT)

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, product)
        return loss, state, {"loss/gshard": loss}
