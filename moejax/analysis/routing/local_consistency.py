"""How much consecutive tokens reuse the same experts, and how often a small cache of experts would hit.

Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models
(Liang et al. 2025, arXiv 2505.16056). f(e, p) counts the uses of expert e in the window of m tokens that
begins at p; windows do not cross texts.

  SRP, segment routing best performance: the best F1 of a router that must say for whole windows which experts
       are on; a window is on where f >= a, and a is the best threshold.
  SCH, segment cache best hit rate: hits of a cache that evicts the expert used least in the next m tokens.
       `sch` follows the published code; `sch_static` is the first version's, without the cost of loading.

Differs from the paper: `srp_iid` and `srp_shuffled` say what SRP is without any locality.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


@dataclasses.dataclass(frozen=True)
class Srp:
    """The best segment router of a group of experts."""

    value: float  # F1, 0 to 1
    threshold: int  # a: uses in a window from which on it is on; the smallest of equally good ones
    size_ratio: float  # rho: experts on per window, over experts per token


def window_counts(mask_NE: np.ndarray, text_N: np.ndarray, m: int) -> np.ndarray:
    """Uses of each expert in every window of m tokens of one text, [windows, E]."""
    mask_NE, text_N = np.asarray(mask_NE, np.int64), np.asarray(text_N)
    if len(mask_NE) < m:
        return np.zeros((0, mask_NE.shape[1]), np.int64)
    total = np.concatenate([np.zeros((1, mask_NE.shape[1]), np.int64), np.cumsum(mask_NE, axis=0)])
    whole = text_N[m - 1 :] == text_N[: len(text_N) - m + 1]
    return (total[m:] - total[:-m])[whole]


def srp(count_WE: np.ndarray, m: int) -> Srp:
    """SRP of a group of experts, from their window counts; one threshold for all of them."""
    windows_F = np.bincount(count_WE.ravel(), minlength=m + 1)  # by number of uses
    uses_F = windows_F * np.arange(m + 1)
    on_A, hit_A = (np.cumsum(x[::-1])[::-1].tolist() for x in (windows_F, uses_F))
    uses = hit_A[0]
    if not uses:
        return Srp(0.0, 0, 0.0)
    # Fractions, because ties between thresholds are exact; the smallest wins.
    f1_A = [Fraction(2 * hit, m * on + uses) for on, hit in zip(on_A, hit_A, strict=True)]
    best = f1_A.index(max(f1_A))
    return Srp(float(f1_A[best]), best, m * on_A[best] / uses)


def srp_iid(num_experts: int, slots: float, m: int) -> float:
    """SRP, in the limit of many windows, where every token draws its experts independently and evenly."""
    share = min(slots / num_experts, 1.0)
    use_F = np.arange(m + 1)
    if share == 1.0:
        return 1.0
    log_pick = np.array([math.lgamma(m + 1) - math.lgamma(f + 1) - math.lgamma(m - f + 1) for f in use_F])
    chance_F = np.exp(log_pick + use_F * math.log(share) + (m - use_F) * math.log1p(-share))
    on_A, hit_A = (np.cumsum(x[::-1])[::-1] for x in (chance_F, chance_F * use_F))
    return float(np.max(2 * hit_A / (m * on_A + m * share)))


def shuffled(expert_NK: np.ndarray, seed: int = 0) -> np.ndarray:
    """The choices of all tokens in another order: what balance alone gives, without locality."""
    return np.random.default_rng(seed).permutation(expert_NK, axis=0)


def sch_static(count_WE: np.ndarray, size: int) -> float:
    """SCH of the paper's first version: every window has a cache of its own with its most used experts."""
    total = count_WE.sum()
    best_WE = -np.sort(-count_WE, axis=1)
    return float(best_WE[:, :size].sum() / total) if total else 0.0


def hit_rate(
    expert_NK: np.ndarray, num_experts: int, texts: Sequence[slice], size: int, policy: str, m: int = 16
) -> float:
    """Share of the demands that a cache of `size` experts answers, mean over texts.

    A token demands all its experts at once; hits are judged before it changes the cache. The first experts of
    a text fill the cache for free. Then they are inserted in order, each for the cached expert with the
    smallest key of the policy, of equal ones that which was used longest ago:

      sch     uses in the next m tokens, the current one with what it still demands
      lru     nothing but the time of its last use
      lfu     uses so far
      belady  the next use comes last
    """
    rates = [_hit_rate(expert_NK[own].tolist(), num_experts, size, policy, m) for own in texts]
    rates = [rate for rate in rates if rate is not None]
    return sum(rates) / len(rates) if rates else 0.0


def _hit_rate(tokens: list[list[int]], E: int, size: int, policy: str, m: int) -> float | None:
    """Of one text; None if it demands nothing."""
    demands = [(t, e) for t, token in enumerate(tokens) for e in token if e < E]
    if not demands:
        return None
    cache = set(list(dict.fromkeys(e for _, e in demands))[:size])
    future, key = POLICIES[policy](demands, E, m)
    last_use = [-1] * E
    hits, now, held = 0, -1, set()
    for i, (t, e) in enumerate(demands):
        if t != now:
            now, held = t, set(cache)
        hits += e in held
        future(i)
        last_use[e] = i
        if e not in cache:
            cache.remove(min(cache, key=lambda x: (key(x), last_use[x])))
            cache.add(e)
    return hits / len(demands)


def _sch(demands, E: int, m: int):
    """Uses from the next demand on, up to the token before the current one plus m."""
    ahead, end = [0] * E, 0

    def advance(i):
        nonlocal end
        while end < len(demands) and demands[end][0] < demands[i][0] + m:
            ahead[demands[end][1]] += 1
            end += 1
        ahead[demands[i][1]] -= 1

    return advance, ahead.__getitem__


def _lru(demands, E: int, m: int):
    return lambda i: None, lambda e: 0


def _lfu(demands, E: int, m: int):
    uses = [0] * E

    def advance(i):
        uses[demands[i][1]] += 1

    return advance, uses.__getitem__


def _belady(demands, E: int, m: int):
    never = len(demands)
    following, next_use = [0] * never, [never] * E
    for i in range(never - 1, -1, -1):
        following[i], next_use[demands[i][1]] = next_use[demands[i][1]], i

    def advance(i):
        next_use[demands[i][1]] = following[i]

    return advance, lambda e: -next_use[e]


POLICIES = {"lru": _lru, "lfu": _lfu, "sch": _sch, "belady": _belady}
