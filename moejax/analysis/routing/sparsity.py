"""How few experts a token takes, and how few a whole chunk of consecutive tokens.

BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity
(Song et al. 2025, arXiv 2507.08771). Who verifies L drafted tokens at once reads the union of their experts.

  TLS = 1 - mean share of experts that a token takes
  CLS_L = 1 - mean share of experts that a chunk of L tokens takes; CLS_1 = TLS
  reuse = mean over consecutive tokens of |both| / |first|

Chunks lie within a text and do not overlap; what is left of a text at its end is not counted.
"""

from collections.abc import Sequence

import numpy as np


def token_sparsity(mask_NE: np.ndarray) -> float:
    """TLS."""
    return float(1 - np.mean(mask_NE))


def chunk_sparsity(mask_NE: np.ndarray, texts: Sequence[slice], length: int) -> float:
    """CLS of chunks of `length` tokens; NaN if no text is as long."""
    unions = []
    for own in texts:
        mask_TE = mask_NE[own]
        whole = len(mask_TE) // length
        unions.append(mask_TE[: whole * length].reshape(whole, length, mask_TE.shape[1]).any(axis=1))
    union_CE = np.concatenate(unions)
    return float(1 - union_CE.mean()) if len(union_CE) else float("nan")


def chunk_sparsity_iid(num_experts: int, slots: float, length: int) -> float:
    """CLS where every token draws its experts independently and evenly."""
    return float((1 - min(slots / num_experts, 1.0)) ** length)


def reuse(mask_NE: np.ndarray, text_N: np.ndarray) -> float:
    """Share of a token's experts that the next token of its text takes too; NaN if no token has a next one.

    Tokens without experts are left out. Independent, even routing gives slots / experts.
    """
    first_NE, second_NE = mask_NE[:-1], mask_NE[1:]
    size_N = first_NE.sum(axis=1)
    pair_N = (text_N[1:] == text_N[:-1]) & (size_N > 0)
    both_N = (first_NE & second_NE).sum(axis=1)
    return float(np.mean(both_N[pair_N] / size_N[pair_N])) if pair_N.any() else float("nan")
