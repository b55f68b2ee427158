"""Expert choice: experts take tokens, so their load is equal whatever the router says.

Mixture-of-Experts with Expert Choice Routing (Zhou et al. 2022, arXiv 2202.09368): in a group of N tokens
each expert takes the ceil(factor N / E) tokens that want it most; gates are the scores. A token may be taken
by all experts or by none. With over="tokens" the gates of an expert are the softmax over its tokens of their
scores' log-odds; with sigmoid scores, whose log-odds are the logits, that is the form printed in FSMoE
(arXiv 2501.10714).

Differs from the papers: a token keeps at most k of the experts that took it, the ones it wants most (E for
the papers' meaning); an expert takes no absent token, and none that may not choose it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.routers.select.groups import check_group, gathered, over_groups, own
from moejax.routers.select.slots import filled, ranked
from moejax.seams import Selector


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Selector):
    k: int  # slots: most experts per token
    factor: float = 2.0  # experts per token on average
    group: str = "row"  # row | shard | global: the tokens among which an expert takes its own
    over: str = "experts"  # experts: gates are the scores | tokens: a softmax over an expert's tokens

    causal = False

    def __post_init__(self):
        check_group(self.group)
        require(self.k >= 1, f"selector.k={self.k} must be at least 1")
        require(
            0 < self.factor < math.inf,
            f"selector.factor={self.factor} must be positive and finite: experts per token on average",
        )
        known = ("experts", "tokens")
        require(
            self.over in known,
            f"selector.over={self.over!r} is not one of {', '.join(known)}; choose one of them",
        )

    @property
    def num_slots(self) -> int:
        return self.k

    def select(self, p, score_BTE, choice_BTE, valid_BT, key):
        choice_BTE = jnp.where(valid_BT[..., None], choice_BTE, -jnp.inf)
        taken_BTE = over_groups(self.group, self._taken, jax.lax.stop_gradient(choice_BTE))
        if self.over == "tokens":
            score_BTE = over_groups(self.group, softmax_over_tokens, log_odds(score_BTE), taken_BTE)
        expert_BTK, full_BTK = ranked(jnp.where(taken_BTE, choice_BTE, -jnp.inf), valid_BT, self.k)
        expert_BTK, gate_BTK = filled(score_BTE, expert_BTK, full_BTK)
        return expert_BTK, gate_BTK, {}

    def _taken(self, axes, choice_NE):
        """Each expert's best tokens; of equal ones, the first."""
        choice_EN = gathered(choice_NE, axes).T
        E, N = choice_EN.shape
        size = min(N, math.ceil(self.factor * N / E))
        last_E1 = jax.lax.top_k(choice_EN, size)[0][:, -1:]
        above_EN, equal_EN = choice_EN > last_E1, choice_EN == last_E1
        left_E1 = size - jnp.sum(above_EN, axis=1, keepdims=True)
        taken_EN = above_EN | (equal_EN & (jnp.cumsum(equal_EN, axis=1) <= left_E1))
        return own((taken_EN & (choice_EN > -jnp.inf)).T, axes)


def log_odds(score_BTE):
    """log(p / (1 - p)), the inverse of the sigmoid; saturated scores count as the nearest that are not."""
    eps = jnp.finfo(score_BTE.dtype).eps
    p_BTE = jnp.clip(score_BTE, eps, 1 - eps)
    return jnp.log(p_BTE) - jnp.log1p(-p_BTE)


def softmax_over_tokens(axes, logit_NE, taken_NE):
    """Per expert: softmax of its tokens' logits, 0 for the others."""
    logit_NE, taken_NE = gathered(logit_NE, axes), gathered(taken_NE, axes)
    top_1E = jnp.max(jnp.where(taken_NE, logit_NE, -jnp.inf), axis=0, keepdims=True)
    above_NE = jnp.where(taken_NE, logit_NE - jax.lax.stop_gradient(top_1E), 0.0)
    weight_NE = jnp.where(taken_NE, jnp.exp(above_NE), 0.0)
    sum_1E = jnp.sum(weight_NE, axis=0, keepdims=True)  # at least 1, the best token's, or nobody was taken
    return own(weight_NE / jnp.maximum(sum_1E, 1.0), axes)
