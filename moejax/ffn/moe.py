"""Sparse mixture of experts: score, adjust, select, dispatch.

Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer (Shazeer et al. 2017,
arXiv 1701.06538): y = sum_k gate_k expert_k(x) over the few experts that a router selects.

Differs from the paper: the router is a Scorer times a Selector, both strategies; experts are SwiGLU.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.ops import experts
from moejax.seams import Ffn, Routing
from moejax.specs import Normal, Spec


@dataclasses.dataclass(frozen=True)
class Moe(Ffn):
    num_experts: int  # E
    hidden: int  # F, of one expert
    scorer: Any  # Scorer
    selector: Any  # Selector
    dispatch: Any  # Dispatch
    activation: str = "silu"  # of the experts: silu | relu | gelu | gelu_exact | clamped_swiglu
    gated: bool = True  # experts are (act(x W_gate) * (x W_up)) W_down; otherwise act(x W_up) W_down
    linear_gate: bool = False  # x W_up times one more x W_linear_gate (OpenMoE, arXiv 2402.01739)
    bias: bool = False  # experts add a constant after every matrix
    shared_expert: Any = None  # Ffn that every token passes as well (DeepSeekMoE, arXiv 2401.06066)
    shared_gate: bool = False  # weigh the shared expert by sigmoid(x w) (Qwen2-MoE, arXiv 2407.10671)

    def __post_init__(self):
        E, K = self.num_experts, self.selector.num_slots
        for name in ("num_experts", "hidden"):
            require(getattr(self, name) >= 1, f"ffn.{name}={getattr(self, name)} must be at least 1")
        experts.check_activation(self.activation, self._parts)
        require(
            self.shared_expert is not None or not self.shared_gate,
            "ffn.shared_gate=True weighs a shared expert, but ffn.shared_expert is None; "
            "give one, or set ffn.shared_gate=False",
        )
        alone = self.shared_expert is None or (self.shared_expert.causal and not self.shared_expert.shared)
        require(
            alone,
            f"ffn.shared_expert={type(self.shared_expert).__name__} looks at other tokens or layers; "
            "choose one that maps each token by itself, such as Dense",
        )
        require(
            1 <= K <= E,
            f"ffn.selector.k={K} experts per token out of ffn.num_experts={E} is impossible; "
            f"choose 1 <= k <= {E}",
        )
        self._check_router()

    def _check_router(self) -> None:
        names = {True: "logits", False: "scores that are not negative"}
        scorer, selector = self.scorer, self.selector
        require(
            scorer.signed == selector.signed,
            f"ffn.scorer={type(scorer).__name__} gives {names[scorer.signed]}, but ffn.selector="
            f"{type(selector).__name__} works on {names[selector.signed]}; "
            'a scorer with activation="identity" gives logits',
        )
        selector.check(self.num_experts, scorer)

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the experts."""
        experts.check_mesh(mesh, self.num_experts, self.hidden, self.dispatch)
        self.scorer.check_mesh(mesh)
        if self.shared_expert is not None:
            self.shared_expert.check_mesh(mesh)

    @property
    def _parts(self) -> experts.Parts:
        return experts.Parts(self.gated, self.linear_gate, self.bias)

    @property
    def causal(self) -> bool:
        return self.selector.causal and self.dispatch.causal

    def causal_form(self):
        selector, dispatch = self.selector.causal_form(), self.dispatch.causal_form()
        return dataclasses.replace(self, selector=selector, dispatch=dispatch)

    @property
    def shared(self) -> str:
        return self.scorer.shared

    def specs(self, m):
        D, E, used = m.width, self.num_experts, self.selector.num_slots / self.num_experts
        tree = {
            "score": self.scorer.specs(m, E),
            "select": self.selector.specs(m, E),
            "experts": experts.bank_specs(m, E, self.hidden, used, self._parts, self.dispatch.sliced),
        }
        if self.bias:
            tree["down_bias"] = experts.down_bias_specs(m, E, used)
        if self.shared_expert is not None:
            tree["shared"] = self.shared_expert.specs(m)
        if self.shared_gate:
            tree["shared_gate"] = Spec((D,), ("embed",), Normal(D**-0.5), m.param_dtype)
        return tree

    def carry_specs(self, m):
        return self.scorer.carry_specs(m, self.num_experts)

    def cache(self, m, num_slots, length):
        return self.scorer.cache(m, self.num_experts, num_slots, length)

    def shared_specs(self, m):
        return self.scorer.shared_specs(m, self.num_experts)

    def shared_cache(self, m, num_slots, length):
        return self.scorer.shared_cache(m, num_slots, length)

    def prepare(self, p, m, batch, cache):
        return self.scorer.prepare(p, m, batch, cache)

    def apply(self, p, i):
        logit_BTE, score_BTE, memory = self.scorer.score(p["score"], i)
        score_BTE, choice_BTE = adjust(score_BTE, i.side)
        expert_BTK, gate_BTK, extra = self.selector.select(
            p["select"], score_BTE, choice_BTE, i.batch.valid_BT, i.key
        )
        sent_BTK = jnp.where(extra.get("kept_BTK", True), expert_BTK, self.num_experts)
        compute = experts.computed(self._parts, self.activation)
        y_BTD, kept_BTK = self.dispatch(compute, p["experts"], i.x_BTD, sent_BTK, gate_BTK)
        if self.bias:
            weight_BTE = per_expert(jnp.where(kept_BTK, gate_BTK, 0), expert_BTK, self.num_experts)
            y_BTD = y_BTD + weights.einsum("BTE,ED->BTD", weight_BTE, p["down_bias"]).astype(y_BTD.dtype)
        if self.shared_expert is not None:
            y_BTD = y_BTD + self._for_all(p, i)
        if self.scorer.signed:
            score_BTE = jax.nn.softmax(score_BTE)
        return y_BTD, Routing(expert_BTK, gate_BTK, kept_BTK, score_BTE, logit_BTE, extra), memory

    def _for_all(self, p, i):
        """What the shared expert gives every token."""
        y_BTD, _, _ = self.shared_expert.apply(p["shared"], i)
        if not self.shared_gate:
            return y_BTD
        gate_BT = jax.nn.sigmoid(weights.einsum("BTD,D->BT", i.x_BTD, p["shared_gate"]))
        return gate_BT[..., None] * y_BTD


def per_expert(gate_BTK, expert_BTK, num_experts: int):
    """gate_BTE: the gates of a token at their experts; what is at expert E is nowhere."""
    hit_BTKE = expert_BTK[..., None] == jnp.arange(num_experts)[None, None, None]
    return jnp.sum(jnp.where(hit_BTKE, gate_BTK[..., None], 0), axis=2)


def adjust(score_BTE, side):
    """What the caller adds, once for every router: (scores, what the choice is made by)."""
    if side.bias_BE is not None:
        score_BTE = score_BTE + side.bias_BE[:, None]
    choice_BTE = score_BTE if side.prefer_BE is None else score_BTE + side.prefer_BE[:, None]
    if side.allow_BE is not None:
        choice_BTE = jnp.where(side.allow_BE[:, None], choice_BTE, -jnp.inf)
    return score_BTE, choice_BTE
