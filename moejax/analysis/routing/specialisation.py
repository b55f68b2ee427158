"""What single experts are for: some kinds of text, some words, and windows of consecutive tokens.

Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models
(Liang et al. 2025, arXiv 2505.16056) sets the consistency of experts beside what they specialise in.

Differs from the paper: of its three kinds of words (read, predicted, next) only those that are read.
"""

import numpy as np

from moejax.analysis.routing.local_consistency import srp, window_counts
from moejax.analysis.routing.token_identity import contingency
from moejax.analysis.routing.trace import Layer

LEAST_SHARE = 1e-5  # of a domain's tokens; below it the expert is as good as unused there
MIN_COUNT = 20  # occurrences from which on an id has an expert of its own


def frequency(layer: Layer, label_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Share of a domain's tokens that each expert takes, [labels, E]; NaN for an absent domain."""
    tokens_C = np.bincount(label_N, minlength=num_labels).astype(float)
    slots_CE = layer.count_slots(label_N, num_labels)
    return slots_CE / np.where(tokens_C > 0, tokens_C, np.nan)[:, None]


def domain_specialisation(layer: Layer, label_N: np.ndarray, num_labels: int) -> np.ndarray:
    """Coefficient of variation of each expert's frequency over the domains; 0 = even.

    NaN for an expert that is used in fewer than two of them.
    """
    found = []
    for share_C in frequency(layer, label_N, num_labels).T:
        used = share_C[share_C > LEAST_SHARE]  # False for NaN
        found.append(used.std(ddof=1) / used.mean() if len(used) > 1 else np.nan)
    return np.array(found)


def vocabulary_specialisation(layer: Layer, token_N: np.ndarray, min_count: int = MIN_COUNT) -> np.ndarray:
    """How faithful its ids are to each expert: mean share of first choices over the ids that it has.

    An id belongs to the expert that is its first choice most often. NaN for an expert without ids.
    """
    E = layer.num_experts
    count_VE = contingency(token_N, layer.top_N, (int(token_N.max()) + 1, E + 1))[:, :E]
    count_VE = count_VE[count_VE.sum(axis=1) >= min_count]
    owner_V, share_V = count_VE.argmax(axis=1), count_VE.max(axis=1) / count_VE.sum(axis=1)
    ids_E = np.bincount(owner_V, minlength=E)
    return np.bincount(owner_V, weights=share_V, minlength=E) / np.where(ids_E > 0, ids_E, np.nan)


def expert_srp(layer: Layer, text_N: np.ndarray, window: int = 16) -> np.ndarray:
    """SRP of every expert alone, with a threshold of its own; 0 for one that is never used."""
    count_WE = window_counts(layer.mask_NE, text_N, window)
    return np.array([srp(count_WE[:, e : e + 1], window).value for e in range(layer.num_experts)])
