"""The losses of DynMoLE: decided routers, and balance of the probability mass that is kept.

DynMoLE: Boosting Mixture of LoRA Experts Fine-Tuning with a Hybrid Routing Mechanism (Li et al. 2025,
arXiv 2504.00661), as in its code:

TsallisEntropy   the mean over tokens and layers of the router's normalised Tsallis entropy.
KeptMassBalance  E * sum_e f_e P_e with f_e the mean gate of expert e and P_e its mean score share, both over
                 all tokens of all layers before the product; 1 for a uniform router, E where one expert takes
                 all.

Differs from the paper: padding is left out of the entropy as well.
"""

import dataclasses

import jax.numpy as jnp

from moejax.config import require
from moejax.losses.base import Loss, mean_over_layers, seen_layers
from moejax.losses.counts import shares
from moejax.ops.entropy import check_index, tsallis


@dataclasses.dataclass(frozen=True)
class TsallisEntropy(Loss):
    weight: float = 1e-2  # beta
    q: float = 1.1  # entropic index; 1 is Shannon's
    eps: float = 1e-5  # added to every probability

    def __post_init__(self):
        check_index(self.q, self.eps)

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        entropy_BT = tsallis(shares(out.routing), self.q, self.eps)
        return {
            "entropy": jnp.sum(jnp.where(batch.valid_BT, entropy_BT, 0.0)),
            "tokens": jnp.sum(batch.valid_BT, dtype=entropy_BT.dtype),
        }

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, lambda seen: seen["entropy"] / jnp.maximum(seen["tokens"], 1.0))
        return loss, state, {"loss/tsallis_entropy": loss}


@dataclasses.dataclass(frozen=True)
class KeptMassBalance(Loss):
    weight: float = 1e-3  # gamma

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        share_BTE = jnp.where(batch.valid_BT[..., None], shares(out.routing), 0.0)
        hit_BTKE = out.routing.expert_BTK[..., None] == jnp.arange(share_BTE.shape[-1])[None, None, None]
        gate_BTK1 = out.routing.gate_BTK[..., None].astype(share_BTE.dtype)
        return {
            "kept": jnp.sum(jnp.where(hit_BTKE, gate_BTK1, 0.0), axis=(0, 1, 2)),
            "share": jnp.sum(share_BTE, axis=(0, 1)),
            "tokens": jnp.sum(batch.valid_BT, dtype=share_BTE.dtype),
        }

    def stats(self, params, m, probes, output, batch):
        layers = seen_layers(probes)
        widths = {seen["share"].shape[-1] for seen in layers}
        require(
            len(widths) <= 1,
            f"KeptMassBalance sums over layers, but they have {widths} experts; use equal ones",
        )
        if not layers:
            return {}
        return {name: sum(jnp.sum(seen[name], axis=0) for seen in layers) for name in layers[0]}

    def total(self, stats, state):
        if not stats:
            return jnp.zeros(()), state, {}
        mean = {name: stats[name] / jnp.maximum(stats["tokens"], 1.0) for name in ("kept", "share")}
        loss = stats["share"].shape[-1] * jnp.vdot(mean["kept"], mean["share"])
        return loss, state, {"loss/kept_mass_balance": loss}
