"""One router in front of the network, whose decision holds for every layer.

Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design (Cai et al. 2024,
arXiv 2410.19123): a small causal decoder G with an embedding of its own reads the token ids, and every layer
routes by the same logits G(x_<=t), so experts are known before the first layer runs,
    y = sum over the top k of G(x_<=t)_e F_e(x_t) in every layer  (eq. 2).

Differs from the paper: G is made of moejax's own blocks (no biases, gated MLP); the published size is width
512, one block of 4 heads. Scores are softmax(G), so that with `TopK(1, renormalise=False)` the router learns
from the language model's loss; the released code weighs the chosen expert by 1 and trains G by distillation.
"""

import dataclasses

import jax

from moejax.config import Group, ModelConfig, require
from moejax.model import forward as decoder
from moejax.model import stack
from moejax.routers.score.base import logits
from moejax.seams import Scorer
from moejax.specs import Normal, Spec


@dataclasses.dataclass(frozen=True)
class Pregated(Scorer):
    width: int  # W, of the router's residual stream; 512 in the paper
    groups: tuple[Group, ...]  # of the router's blocks

    shared = "read_me"
    reads = frozenset({"batch", "shared"})

    def __post_init__(self):
        require(self.width >= 1, f"scorer.width={self.width} must be at least 1")
        require(len(self.groups) > 0, "scorer.groups is empty; the router needs at least one group of blocks")

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the router."""
        require(
            self.width % mesh.fsdp == 0,
            f"scorer.width={self.width} is not divisible by mesh.fsdp={mesh.fsdp}; "
            "choose one that divides the other",
        )
        for block in (block for group in self.groups for block in group.blocks):
            block.check_mesh(mesh)

    def _model(self, m) -> ModelConfig:
        """The router's decoder: only its hidden states are read."""
        own = {"width": self.width, "groups": self.groups, "embed_scale": 1.0}
        return dataclasses.replace(m, **own, tied=True, unembed_bias=False)

    def specs(self, m, num_experts: int):
        return {}

    def shared_specs(self, m, num_experts: int):
        w = Spec((self.width, num_experts), ("embed", None), Normal(self.width**-0.5), m.param_dtype)
        return {"decoder": decoder.specs(self._model(m)), "w": w}

    def shared_cache(self, m, num_slots: int, length: int):
        return stack.cache_specs(self._model(m), num_slots, length)

    def prepare(self, p, m, batch, cache):
        """The logits of every layer."""
        output = decoder.forward(p["decoder"], self._model(m), batch, cache=cache)
        return logits(output.hidden_BTD, p["w"]), output.cache

    def score(self, p, i):
        logit_BTE = i.shared[self.shared]
        return logit_BTE, jax.nn.softmax(logit_BTE), i.memory
