"""Controls for routers over a graph of tokens: they mix router rows without looking at what tokens say.

How wide a map is, is the mean entropy of its rows; `matched` makes controls as wide as one that was learned.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moejax.ops.attention import mix
from moejax.routers.score.base import logits
from moejax.seams import Mixing, Scorer
from moejax.specs import Normal, Spec

LONGEST = 1024  # positions that a random map knows
RANK = 16  # of its scores


@dataclasses.dataclass(frozen=True)
class Recent(Scorer):
    """Evenly over the last tokens, a token's own row included. It has no cache, so it cannot write text."""

    window: int

    reads = frozenset({"x_BTD", "mixing", "batch"})

    def specs(self, m, num_experts: int):
        return _linear(m, num_experts)

    def score(self, p, i):
        x_BT1A = jnp.zeros((*i.batch.pos_BT.shape, 1, RANK), i.x_BTD.dtype)
        return _mixed(p, i, Mixing(x_BT1A, x_BT1A, i.mixing.rule.replace(window=self.window)))


@dataclasses.dataclass(frozen=True)
class Blind(Scorer):
    """By random scores of pairs of positions, always the same. It has no cache, so it cannot write text."""

    sharpness: float  # standard deviation of the scores

    reads = frozenset({"x_BTD", "mixing", "batch"})

    def specs(self, m, num_experts: int):
        return _linear(m, num_experts)

    def score(self, p, i):
        q_BT1A, k_BT1A = (
            jnp.asarray(x_SA, i.x_BTD.dtype)[i.batch.pos_BT][:, :, None] for x_SA in _random_tables()
        )
        return _mixed(p, i, Mixing(self.sharpness * q_BT1A, k_BT1A, i.mixing.rule))


def _linear(m, num_experts: int):
    return {"w": Spec((m.width, num_experts), ("embed", None), Normal(m.width**-0.5), m.param_dtype)}


def _mixed(p, i, mixing: Mixing):
    logit_BTE = logits(i.x_BTD, p["w"])
    row_BT1E = jax.nn.softmax(logit_BTE)[:, :, None]
    return logit_BTE, mix(mixing.q_BTHA, mixing.k_BSGA, row_BT1E, mixing.rule)[:, :, 0], i.memory


def _random_tables() -> np.ndarray:
    """Queries and keys of all positions, [2, S, A]; products over sqrt(A) have deviation 1."""
    return np.random.default_rng(0).standard_normal((2, LONGEST, RANK))


def entropy(p_BTE):
    """Nats, over the last dim."""
    return -jnp.sum(jax.scipy.special.xlogy(p_BTE, p_BTE), axis=-1)


def row_entropy(mixing: Mixing):
    """f32[B, T]: of the mean over heads of an attention map, which one-hot values make visible."""
    B, S, G, _ = mixing.k_BSGA.shape
    onehot_BSGS = jnp.broadcast_to(jnp.eye(S, dtype=mixing.q_BTHA.dtype)[None, :, None], (B, S, G, S))
    return entropy(jnp.mean(mix(mixing.q_BTHA, mixing.k_BSGA, onehot_BSGS, mixing.rule), axis=2))


def matched(width: float, length: int) -> tuple[Blind, Recent]:
    """Controls whose rows have a mean entropy of about `width` nats on texts of `length` tokens."""
    sharpness = _solve(lambda sharpness: -entropy_of_blind(sharpness, length), -width, 0.0, 50.0)
    windows = np.arange(2, length + 1)
    off_W = [abs(entropy_of_recent(int(window), length) - width) for window in windows]
    return Blind(round(sharpness, 2)), Recent(int(windows[np.argmin(off_W)]))


def entropy_of_recent(window: int, length: int) -> float:
    """Mean over the positions of a text."""
    return float(np.mean(np.log(np.minimum(np.arange(length) + 1, window))))


def entropy_of_blind(sharpness: float, length: int) -> float:
    """Mean over the positions of a text."""
    q_TA, k_SA = (table_SA[:length] for table_SA in _random_tables())
    score_TS = sharpness / math.sqrt(RANK) * q_TA @ k_SA.T
    score_TS = np.where(np.tri(length, dtype=bool), score_TS, -np.inf)
    return float(np.mean(entropy(jax.nn.softmax(score_TS))))


def _solve(rising: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a rising function has a value, or the nearer end."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
