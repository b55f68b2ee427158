"""Load balance: experts should be used equally.

Switch Transformers (Fedus et al. 2021, arXiv 2101.03961), eq. 4-6: E * sum_e f_e P_e, with f_e the share of
the routed slots that expert e received and P_e its mean score share; 1 at perfect balance, averaged over
layers.
What is averaged before the product is the choice between three published forms:

MicroBatchBalance  over each micro-batch (Switch): the mean of their products; accumulation changes it.
SequenceBalance    over each row (DeepSeek-V3, arXiv 2412.19437, eq. 17-20): the mean over rows.
GlobalBalance      over the whole batch (Qiu et al. 2025, arXiv 2501.11873): f and P are summed over all
                   micro-batches and devices first, so experts may specialise within a text.

Differs from the papers: f is normalised to sum 1 for any k, and P from sigmoid scores is normalised per
token.
Choices before any drop are counted.
"""

import dataclasses

import jax.numpy as jnp

from moejax.losses.base import Loss, mean_over_layers
from moejax.losses.counts import product, seen_by_batch, seen_by_row


@dataclasses.dataclass(frozen=True)
class GlobalBalance(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        return {} if out.routing is None else seen_by_batch(out.routing, batch.valid_BT)

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, product)
        return loss, state, {"loss/balance_global": loss}


@dataclasses.dataclass(frozen=True)
class MicroBatchBalance(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        return {} if out.routing is None else seen_by_batch(out.routing, batch.valid_BT)

    def stats(self, params, m, probes, output, batch):
        return {"sum": mean_over_layers(probes, product), "micro_batches": jnp.ones(())}

    def total(self, stats, state):
        loss = stats["sum"] / stats["micro_batches"]
        return loss, state, {"loss/balance_micro_batch": loss}


@dataclasses.dataclass(frozen=True)
class SequenceBalance(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        return {"sum": jnp.sum(product(seen_by_row(out.routing, batch.valid_BT)))}

    def stats(self, params, m, probes, output, batch):
        total = mean_over_layers(probes, lambda seen: seen["sum"])
        return {"sum": total, "rows": jnp.sum(jnp.any(batch.valid_BT, axis=1), dtype=total.dtype)}

    def total(self, stats, state):
        loss = stats["sum"] / jnp.maximum(stats["rows"], 1.0)
        return loss, state, {"loss/balance_sequence": loss}
