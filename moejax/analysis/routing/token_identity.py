"""Does a router look at the token, and does it make up its mind early?

OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models (Xue et al. 2024, arXiv 2402.01739) finds
three things in routing traces: experts are chosen by the token's identity and hardly by its context; the
choice is fixed early in training; and where capacity is limited, tokens late in a group are dropped.

Differs from the paper: identity is also measured as the accuracy of a lookup table on text it was not made
from, and every figure has its reference without structure.
"""

import dataclasses

import numpy as np

from moejax.analysis.routing.trace import Layer, RoutingTrace

MIN_COUNT = 32  # occurrences from which on the choices of one token id are believed


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How much of a token's first choice a table from ids to experts knows."""

    accuracy: float  # of the id's most frequent expert
    baseline: float  # accuracy of the one most frequent expert, for all tokens
    known: float  # share of the tokens whose id has an entry; the accuracies are of these
    information: float  # I(e; id) in nats
    entropy: float  # H(e) in nats

    @property
    def uncertainty_coefficient(self) -> float:
        """I(e; id) / H(e): 0 knows nothing, 1 all."""
        return self.information / self.entropy if self.entropy else 0.0


def lookup(id_N, expert_N, fit_N=None, min_count: int = 1) -> Lookup:
    """How well ids predict experts.

    Args:
      id_N: of each token, whole numbers from 0.
      expert_N: its expert.
      fit_N: which tokens make the table; the others test it. None: all do both.
      min_count: occurrences that an id needs to get an entry.
    """
    id_N, expert_N = np.asarray(id_N), np.asarray(expert_N)
    fit_N = np.ones(len(id_N), bool) if fit_N is None else np.asarray(fit_N)
    test_N = fit_N if fit_N.all() else ~fit_N
    shape = (int(id_N.max(initial=0)) + 1, int(expert_N.max(initial=0)) + 1)
    count_VE = contingency(id_N[fit_N], expert_N[fit_N], shape)
    has_V = count_VE.sum(axis=1) >= min_count
    known_N = test_N & has_V[id_N]
    right = count_VE.argmax(axis=1)[id_N[known_N]] == expert_N[known_N]
    common = expert_N[known_N] == count_VE[has_V].sum(axis=0).argmax()
    information, entropy = mutual_information(contingency(id_N[known_N], expert_N[known_N], shape))
    return Lookup(_mean(right), _mean(common), _mean(known_N[test_N]), information, entropy)


def contingency(a_N, b_N, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair occurs."""
    return np.bincount(np.asarray(a_N) * shape[1] + b_N, minlength=shape[0] * shape[1]).reshape(shape)


def mutual_information(count_AB: np.ndarray) -> tuple[float, float]:
    """(I(a; b), H(b)) in nats, of observed pairs."""
    share_AB = count_AB / max(count_AB.sum(), 1)
    share_A, share_B = share_AB.sum(axis=1), share_AB.sum(axis=0)
    return _entropy(share_A) + _entropy(share_B) - _entropy(share_AB), _entropy(share_B)


def spread(id_N: np.ndarray, layer: Layer, min_count: int = MIN_COUNT) -> float:
    """Context-independence: mean over ids of the deviation over experts of their shares of the id's slots.

    0 where every id is spread evenly; `spread_of` says what it is where each id has experts of its own. NaN
    if no id occurs `min_count` times.
    """
    count_VE = layer.count_slots(id_N, int(id_N.max()) + 1)
    count_VE = count_VE[np.bincount(id_N, minlength=len(count_VE)) >= min_count]
    count_VE = count_VE[count_VE.sum(axis=1) > 0]
    if not len(count_VE):
        return float("nan")
    return float((count_VE / count_VE.sum(axis=1, keepdims=True)).std(axis=1).mean())


def spread_of(num_experts: int, used: float) -> float:
    """The `spread` where every id takes `used` experts, always the same, evenly."""
    return float(np.sqrt(max(1 / (used * num_experts) - 1 / num_experts**2, 0.0)))


def previous_ids(trace: RoutingTrace) -> np.ndarray:
    """Of each token the id before it in its text, plus one; 0 at the beginning of a text."""
    before_N = np.concatenate([[0], trace.token_N[:-1] + 1])
    before_N[np.diff(trace.text_N, prepend=-1) != 0] = 0
    return before_N


def majority_agreement(one: RoutingTrace, other: RoutingTrace, min_count: int = MIN_COUNT) -> list[float]:
    """Early fixing, per layer: share of tokens whose id has the same most frequent expert in both traces.

    Of the tokens of `other` whose id occurs `min_count` times in both; the texts may differ. NaN without any.
    """
    V = int(max(one.token_N.max(), other.token_N.max())) + 1
    counts = [np.bincount(trace.token_N, minlength=V) for trace in (one, other)]
    both_N = ((counts[0] >= min_count) & (counts[1] >= min_count))[other.token_N]
    shares = []
    for a, b in zip(one.layers(), other.layers(), strict=True):
        shape = (V, max(a.num_experts, b.num_experts) + 1)
        tables = [
            contingency(trace.token_N, layer.top_N, shape).argmax(axis=1)
            for trace, layer in ((one, a), (other, b))
        ]
        same_V = tables[0] == tables[1]
        shares.append(_mean(same_V[other.token_N[both_N]]))
    return shares


def drops_by_place(trace: RoutingTrace, parts: int = 8) -> np.ndarray:
    """Dropped share of the choices by layer, choice and part of the row, [L, K, parts]; NaN without any."""
    length = int(trace.place_N.max()) + 1
    part_N = trace.place_N.astype(np.int64) * parts // length
    shares = np.full((len(trace.layer_L), trace.num_slots, parts), np.nan)
    for i, layer in enumerate(trace.layers()):
        for k in range(trace.num_slots):
            full_N = layer.full_NK[:, k]
            total = np.bincount(part_N[full_N], minlength=parts)
            lost = np.bincount(part_N[full_N & ~layer.kept_NK[:, k]], minlength=parts)
            np.divide(lost, total, out=shares[i, k], where=total > 0)
    return shares


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum()) + 0.0


def _mean(true: np.ndarray) -> float:
    return float(np.mean(true)) if len(true) else float("nan")
