"""Soft mixture of experts: experts compute slots that are mixtures of all tokens of a row.

From Sparse to Soft Mixtures of Experts (Puigcerver et al. 2023, arXiv 2308.00951), eq. 1-3: logits Z = X Phi;
a slot is the mean of the tokens by softmax over tokens of Z; a token's output is the mean of the slots'
outputs by softmax over slots of Z. Nothing is chosen and nothing dropped, so there is no Routing to report.

Every token sees all tokens of its row, later ones and those of other documents too: this is for encoders and
for comparison, and text cannot be generated with it.

Differs from the paper: X and Phi are not normalised; absent tokens are in no mean; experts are gated.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require
from moejax.ops import experts
from moejax.seams import Ffn
from moejax.specs import Normal, Spec


@dataclasses.dataclass(frozen=True)
class Soft(Ffn):
    num_experts: int  # E
    hidden: int  # F, of one expert
    slots: int  # of one expert; E slots = T costs what one expert per token does
    dispatch: Any  # Dispatch
    activation: str = "silu"  # of the experts' gate: silu | relu | gelu

    causal = False

    def __post_init__(self):
        for name in ("num_experts", "hidden", "slots"):
            require(getattr(self, name) >= 1, f"ffn.{name}={getattr(self, name)} must be at least 1")
        experts.check_activation(self.activation)

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the experts."""
        experts.check_mesh(mesh, self.num_experts, self.hidden, self.dispatch)

    def specs(self, m):
        D, E = m.width, self.num_experts
        return {
            "slots": Spec((D, E * self.slots), ("embed", None), Normal(D**-0.5), m.param_dtype),
            "experts": experts.bank_specs(m, E, self.hidden, used=1 / E, sliced=self.dispatch.sliced),
        }

    def apply(self, p, i):
        valid_BT1 = i.batch.valid_BT[..., None]
        x_BTD = jnp.where(valid_BT1, i.x_BTD, 0)  # an absent token may hold anything
        mix_BTR, share_BTR = slot_weights(p["slots"], x_BTD, valid_BT1)
        where = sharding.out("BRD")
        x_BRD = jnp.einsum("BTR,BTD->BRD", mix_BTR.astype(x_BTD.dtype), x_BTD, out_sharding=where)
        expert_R = jnp.arange(x_BRD.shape[1], dtype=jnp.int32) // self.slots
        expert_BR1 = jnp.zeros_like(x_BRD[..., :1], jnp.int32) + expert_R[None, :, None]
        compute = functools.partial(experts.gated_experts, activation=self.activation)
        y_BRD, _ = self.dispatch(compute, p["experts"], x_BRD, expert_BR1, jnp.ones_like(x_BRD[..., :1]))
        where = sharding.out("BTD")
        y_BTD = jnp.einsum("BTR,BRD->BTD", share_BTR.astype(y_BRD.dtype), y_BRD, out_sharding=where)
        return y_BTD, None, i.memory


def slot_weights(w_DR, x_BTD, valid_BT1):
    """(tokens in a slot, sum 1 over tokens; slots in a token, sum 1 over slots); absent tokens have 0."""
    logit_BTR = weights.einsum("BTD,DR->BTR", x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32)), w_DR)
    lowest = jnp.finfo(logit_BTR.dtype).min  # finite: a row may have no token at all
    mix_BTR = jax.nn.softmax(jnp.where(valid_BT1, logit_BTR, lowest), axis=1)
    return (jnp.where(valid_BT1, weight, 0) for weight in (mix_BTR, jax.nn.softmax(logit_BTR, axis=-1)))
