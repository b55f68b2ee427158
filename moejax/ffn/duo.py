"""Two feed-forward layers of different width side by side; each token passes one of them, or neither.

Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models (Alizadeh et al. 2024,
arXiv 2410.10846). Attention is shared; a route names the module of every layer: small, big, or skip.

Drawn    stage 1: the module of every token and layer is drawn anew in each step, so that no router shapes
         them.
Learned  stage 3: P = softmax(beta x W). Training mixes, y = sum_c P_c H_c, towards a budget
         (`losses.budget`); without a key, as in evaluation, each token passes the likeliest module alone.

As experts, small is 0, big is 1, and a token that skips has empty slots. Routes are data (`route_sides`): the
same compiled program runs them all. Each module is a bank of its own, so neither is padded to the other's
width.

Differs from the paper: its temperature divides the exponentials and cancels; here beta multiplies the logits.
Skips may be drawn too.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require
from moejax.model.forward import forward
from moejax.ops.experts import bank_specs, gated_experts
from moejax.seams import Ffn, Routing, Side
from moejax.specs import Normal, Spec, tree_map

SMALL, BIG, SKIP = 0, 1, 2
MODULES = ("small", "big")


@dataclasses.dataclass(frozen=True)
class Drawn:
    big: float = 0.5  # probability of the big module
    skip: float = 0.0  # probability of neither

    def __post_init__(self):
        possible = self.big >= 0 and self.skip >= 0 and self.big + self.skip <= 1
        require(
            possible, f"choice.big={self.big} and choice.skip={self.skip} must be probabilities of sum <= 1"
        )

    @property
    def used(self) -> tuple[float, float]:
        """Share of the tokens that pass each module."""
        return 1 - self.big - self.skip, self.big

    def specs(self, m):
        return {}

    def weigh(self, p, i, allow_BTM):
        """(logits, probabilities, weights) over small, big, skip; without a key the widest allowed one."""
        known_M = [math.log(share) if share > 0 else -jnp.inf for share in (*self.used, self.skip)]
        logit_BTM = jnp.where(allow_BTM, jnp.array(known_M)[None, None], -jnp.inf)
        only_BTM = jnp.isneginf(jnp.max(logit_BTM, axis=-1, keepdims=True))  # allowed, though never drawn
        logit_BTM = jnp.where(only_BTM & allow_BTM, 0.0, logit_BTM)
        if i.key is None:
            rank_BTM = jnp.where(allow_BTM, jnp.array([1.0, 2.0, 0.0])[None, None], -jnp.inf)
        else:
            where = sharding.out("BTM")
            rank_BTM = logit_BTM + jax.random.gumbel(
                i.key, logit_BTM.shape, logit_BTM.dtype, out_sharding=where
            )
        return logit_BTM, jax.nn.softmax(logit_BTM), one_hot_of_best(rank_BTM)


@dataclasses.dataclass(frozen=True)
class Learned:
    beta: float = (
        1.0  # sharpness; the larger, the nearer is the mixture of training to the choice of evaluation
    )
    skip: bool = False  # whether the router may choose neither

    used = (1.0, 1.0)

    def __post_init__(self):
        require(self.beta > 0, f"choice.beta={self.beta} must be positive")

    def specs(self, m):
        options = len(MODULES) + self.skip
        return {"w": Spec((m.width, options), ("embed", None), Normal(m.width**-0.5), m.param_dtype)}

    def weigh(self, p, i, allow_BTM):
        """(logits, probabilities, weights) over small, big, skip; ties go to the smaller module."""
        x_BTD = i.x_BTD.astype(jnp.promote_types(i.x_BTD.dtype, jnp.float32))
        logit_BTM = self.beta * weights.einsum("BTD,DM->BTM", x_BTD, p["w"])
        if not self.skip:
            logit_BTM = jnp.pad(logit_BTM, ((0, 0), (0, 0), (0, 1)))
        share_BTM = jax.nn.softmax(jnp.where(allow_BTM, logit_BTM, -jnp.inf))
        return logit_BTM, share_BTM, one_hot_of_best(share_BTM) if i.key is None else share_BTM


@dataclasses.dataclass(frozen=True)
class Duo(Ffn):
    small: int  # F of the small module
    big: int  # F of the big one; 16 times as wide in the paper
    choice: Any  # Drawn | Learned
    dispatch: Any  # Dispatch

    def __post_init__(self):
        require(
            1 <= self.small <= self.big, f"ffn.small={self.small} must lie between 1 and ffn.big={self.big}"
        )
        require(
            not self.dispatch.sliced,
            f"ffn.dispatch={type(self.dispatch).__name__} spreads many experts over a mesh, but each module "
            "of Duo is alone in its bank; choose Local()",
        )

    @property
    def causal(self) -> bool:
        return self.dispatch.causal

    def causal_form(self):
        return dataclasses.replace(self, dispatch=self.dispatch.causal_form())

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split both hidden dims."""
        for name in MODULES:
            require(
                getattr(self, name) % mesh.tensor == 0,
                f"ffn.{name}={getattr(self, name)} is not divisible by mesh.tensor={mesh.tensor}; "
                "choose a tensor axis that divides both hidden widths",
            )

    def specs(self, m):
        def module(hidden, used):
            """A bank of one expert, which no mesh splits."""
            bank = bank_specs(m, 1, hidden, used)
            return tree_map(lambda spec: dataclasses.replace(spec, dims=(None, *spec.dims[1:])), bank)

        small, big = self.choice.used
        return {
            "small": module(self.small, small),
            "big": module(self.big, big),
            "choice": self.choice.specs(m),
        }

    def apply(self, p, i):
        allow_BTM = self._allowed(i)
        logit_BTM, share_BTM, weight_BTM = self.choice.weigh(p["choice"], i, allow_BTM)
        gate_BTE = jnp.where(i.batch.valid_BT[..., None], weight_BTM[..., :SKIP], 0.0)
        full_BTE = gate_BTE > 0
        y_BTD, kept = jnp.zeros_like(i.x_BTD), []
        for e, name in enumerate(MODULES):
            own = slice(e, e + 1)
            alone_BT1 = jnp.where(full_BTE[..., own], 0, 1)  # in a bank of one
            own_BTD, kept_BT1 = self.dispatch(gated_experts, p[name], i.x_BTD, alone_BT1, gate_BTE[..., own])
            y_BTD = y_BTD + own_BTD
            kept.append(kept_BT1)
        expert_BTE = jnp.where(full_BTE, jnp.arange(SKIP)[None, None], SKIP)
        routing = Routing(
            expert_BTE, gate_BTE, jnp.concatenate(kept, axis=-1), share_BTM[..., :SKIP], logit_BTM[..., :SKIP]
        )
        return y_BTD, routing, i.memory

    def _allowed(self, i):
        """bool[B, T, 3]. A side that allows one module alone means it, one that allows none means to skip."""
        B, T = i.batch.valid_BT.shape
        allow = i.side.allow_BE
        if allow is None:
            allow = jnp.ones((1, 1, SKIP), bool)
        elif allow.ndim == 2:
            allow = allow[:, None]
        both, none = jnp.all(allow, axis=-1, keepdims=True), ~jnp.any(allow, axis=-1, keepdims=True)
        may_skip = bool(self.choice.skip)
        allow = jnp.concatenate([allow, (both & may_skip) | none], axis=-1)
        return jnp.broadcast_to(allow, (B, T, SKIP + 1), out_sharding=sharding.out("BTM"))


def one_hot_of_best(rank_BTM):
    """1 at the largest entry, the first of equal ones."""
    best_BT1 = jnp.argmax(rank_BTM, axis=-1, keepdims=True)
    return (best_BT1 == jnp.arange(rank_BTM.shape[-1])[None, None]).astype(rank_BTM.dtype)


def route_sides(m, route_LBT):
    """`sides` for `forward` that lead every token along its route.

    Args:
      route_LBT: i8 [layers with a Duo, B or 1, T or 1]: SMALL, BIG or SKIP, in the order in which a token
      passes.
    """
    allow_LBTE = route_LBT[..., None] == jnp.arange(SKIP)[None, None, None]
    sides, first = [], 0
    for group in m.groups:
        duos = [b for b, block in enumerate(group.blocks) if isinstance(block.ffn, Duo)]
        end = first + group.repeat * len(duos)
        allow = {b: allow_LBTE[first + at : end : len(duos)] for at, b in enumerate(duos)}
        sides.append(tuple(Side(allow_BE=allow.get(b)) for b in range(len(group.blocks))))
        first = end
    return tuple(sides)


def losses_of_routes(params, m, batch, route_RL):
    """f32[R, B, T]: -log p(target) in nats where every token of the batch takes the same route."""
    return jax.lax.map(lambda route_L: _routed(params, m, batch, None, route_L[:, None, None])[0], route_RL)


def try_routes(params, m, batch, cache, route_RL):
    """f32[R, B]: -log p(target) of one position after the cache, for each route its tokens could take."""
    return jax.lax.map(
        lambda route_L: _routed(params, m, batch, cache, route_L[:, None, None])[0][:, 0], route_RL
    )


def pass_route(params, m, batch, cache, route_LB):
    """The cache after the tokens of one position have passed their routes."""
    return _routed(params, m, batch, cache, route_LB[..., None])[1]


def _routed(params, m, batch, cache, route_LBT):
    output = forward(params, m, batch, cache=cache, sides=route_sides(m, route_LBT))
    share_BTV = jax.nn.log_softmax(output.logits_BTV)
    return -jnp.take_along_axis(share_BTV, batch.target_BT[..., None], axis=-1)[..., 0], output.cache
