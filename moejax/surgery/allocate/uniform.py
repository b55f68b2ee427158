"""The same number of parts in every layer."""

import numpy as np

from moejax.config import require


def uniform(scores, kept: int):
    """The `kept` parts of highest score of every layer, rising; of equals the lower index (an Allocate).

    Raises:
      UsageError: a layer has fewer parts, or a score is not a number.
    """

    def one(score_LE):
        if score_LE is None:
            return None
        E = score_LE.shape[1]
        require(1 <= kept <= E, f"kept={kept} parts of a layer that has {E} is impossible; choose 1 to {E}")
        require(not np.isnan(score_LE).any(), "a score is not a number; score the model on other text")
        best_LM = np.argsort(-score_LE, axis=1, kind="stable")[:, :kept]
        return np.sort(best_LM, axis=1).astype(np.int32)

    return tuple(tuple(map(one, group)) for group in scores)
