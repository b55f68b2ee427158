"""How sure routers are, how evenly they load their experts, and what layers know of one another.

Layerwise Recurrent Router for Mixture-of-Experts (Qiu et al. 2024, arXiv 2408.06793) measures inner and outer
balance and the information between layers.

Differs from the paper: its information is that of the score vectors of one token, binned; the information of
first choices over the tokens, beside that of shuffled tokens, is given too.
"""

import numpy as np

from moejax.analysis.routing.token_identity import contingency, mutual_information
from moejax.analysis.routing.trace import Layer

BINS = 100  # that scores from 0 to 1 are sorted into
MOST_TOKENS = 2048  # whose score vectors are compared


def inner_balance(score_NE: np.ndarray) -> float:
    """Median ratio of the largest to the second score; 1 = undecided."""
    top_N2 = -np.sort(-score_NE.astype(np.float64), axis=1)[:, :2]
    return float(np.median(top_N2[:, 0] / np.maximum(top_N2[:, 1], 1e-8))) if top_N2.shape[1] == 2 else 1.0


def outer_balance(layer: Layer) -> float:
    """Median share of the scores that the chosen experts have; K / E = undecided, 1 = sure."""
    chosen_NE = np.where(layer.mask_NE, layer.score_NE.astype(np.float64), 0.0)
    return float(np.median(chosen_NE.sum(axis=1)))


def score_entropy(score_NE: np.ndarray) -> float:
    """Mean entropy of a token's scores in nats; log E = undecided."""
    score_NE = score_NE.astype(np.float64)
    return float(-(score_NE * np.log(np.maximum(score_NE, 1e-20))).sum(axis=1).mean())


def load(layer: Layer) -> np.ndarray:
    """Share of the slots per expert."""
    slots_E = layer.count_slots(np.zeros(len(layer.expert_NK), int), 1)[0]
    return slots_E / max(slots_E.sum(), 1)


def max_violation(load_E: np.ndarray) -> float:
    """By how much the largest load exceeds the even share, in even shares; 0 = even."""
    return float(load_E.max() * len(load_E) - 1)


def binned_information(a_NE: np.ndarray, b_NE: np.ndarray) -> float:
    """Mean over tokens of the mutual information, in nats, of two layers' scores of a token.

    The scores of one token are taken for samples and sorted into bins: 0 where one layer is even.
    """
    a_NE, b_NE = ((x.astype(np.float32) * BINS).astype(int) for x in (a_NE[:MOST_TOKENS], b_NE[:MOST_TOKENS]))
    same_a, same_b = (x[:, :, None] == x[:, None] for x in (a_NE, b_NE))
    a, b, both = (same.sum(axis=2) for same in (same_a, same_b, same_a & same_b))
    return float(np.log(both * a_NE.shape[1] / (a * b)).mean())


def choice_information(a: Layer, b: Layer, seed: int | None = None) -> float:
    """Mutual information, in nats, of the first choices of two layers; with a seed, of shuffled tokens."""
    top_N = b.top_N if seed is None else np.random.default_rng(seed).permutation(b.top_N)
    return mutual_information(contingency(a.top_N, top_N, (a.num_experts + 1, b.num_experts + 1)))[0]
