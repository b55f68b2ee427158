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
from moejax.losses.counts import shares, slots_by_row


def seen_by_row(routing, valid_BT):
    """Per row: routed slots per expert [B, E], summed score shares [B, E], and valid tokens [B]."""
    share_BTE = jnp.where(valid_BT[..., None], shares(routing), 0.0)
    return {
        "slots": slots_by_row(routing),
        "share": jnp.sum(share_BTE, axis=1),
        "tokens": jnp.sum(valid_BT, axis=1, dtype=share_BTE.dtype),
    }


def product(seen):
    """E * sum_e f_e P_e over the last dim of the sums in `seen`; 0 where nothing was seen."""
    slots_E, share_E = seen["slots"], seen["share"]
    f_E = slots_E / jnp.maximum(jnp.sum(slots_E, axis=-1, keepdims=True), 1.0)
    P_E = share_E / jnp.maximum(seen["tokens"][..., None], 1.0)
    return slots_E.shape[-1] * jnp.sum(f_E * P_E, axis=-1)


def probe_batch(out, batch):
    """Sums over the micro-batch of one layer's slots, shares and tokens."""
    if out.routing is None:
        return {}
    return {name: jnp.sum(value, axis=0) for name, value in seen_by_row(out.routing, batch.valid_BT).items()}


@dataclasses.dataclass(frozen=True)
class GlobalBalance(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        return probe_batch(out, batch)

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, product)
        return loss, state, {"loss/balance_global": loss}


@dataclasses.dataclass(frozen=True)
class MicroBatchBalance(Loss):
    weight: float = 1e-2

    def probe(self, out, batch):
        return probe_batch(out, batch)

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
