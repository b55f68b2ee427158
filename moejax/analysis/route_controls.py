"""What the best of many candidates is worth by itself: controls for `route_oracle`.

Duo-LLM (Alizadeh et al. 2024, arXiv 2410.10846) finds that the best route with half of the layers big beats
all others, and says that there are more such routes. A minimum over noise falls with its number of candidates
too, so a gain is compared to what equally many candidates gain without meaning, and to what can be chosen
without knowing the target.
"""

import math

import numpy as np

from moejax.config import require


def expected_best(loss_RN, count: int) -> np.ndarray:
    """f64[N]: the least loss of `count` of the R candidates, the mean over all choices of so many, exactly.

    count = 1 is one candidate at random.
    """
    loss_RN = np.asarray(loss_RN, np.float64)
    R = len(loss_RN)
    require(1 <= count <= R, f"count={count} must lie between 1 and the {R} candidates")
    share_R = np.array([math.comb(R - 1 - r, count - 1) / math.comb(R, count) for r in range(R)])
    return share_R @ np.sort(loss_RN, axis=0)  # the r-th best is the least if all others are worse


def best_by_id(loss_RN, id_N, fit_N) -> np.ndarray:
    """i64[N]: the candidate that is best, among the fit tokens, for the token's id; no target is looked at.

    An id that no fit token has gets the candidate that is best over all of them.
    """
    id_N, fit_N = np.asarray(id_N), np.asarray(fit_N, bool)
    fit_RN = np.asarray(loss_RN, np.float64)[:, fit_N]
    V = int(id_N.max()) + 1
    sum_RV = np.stack([np.bincount(id_N[fit_N], loss_N, V) for loss_N in fit_RN])
    best_V = np.argmin(sum_RV, axis=0)
    unseen_V = np.bincount(id_N[fit_N], minlength=V) == 0
    best_V[unseen_V] = np.argmin(fit_RN.sum(axis=1))
    return best_V[id_N]


def spread(loss_RN) -> float:
    """Mean over tokens of the standard deviation of the candidates' losses."""
    return float(np.std(np.asarray(loss_RN, np.float64), axis=0).mean())
