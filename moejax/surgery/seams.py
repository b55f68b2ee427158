"""The seam of surgery: a score, then an allocation, then a cut; none of them knows another.

    scores = ExpertUtility().score(params, m, batches)
    params, m = cut_experts(params, m, uniform(scores, kept=48))

Scores and Keep are tuples per group of tuples per block, with None for a block that has no such parts.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from moejax.seams import Batch, Tree

Scores = tuple  # f64 [repeat, parts]: how much each part matters
Keep = tuple  # i32 [repeat, kept], rising: which parts stay; None keeps all
Allocate = Callable[[Scores, int], Keep]  # on the host
Cut = Callable[[Tree, Any, Keep], tuple[Tree, Any]]  # (params, m, keep) -> new params and the m they fit


class Score(Protocol):
    """How much each part of a model matters for some text; nothing is trained."""

    def score(self, params, m, batches: Sequence[Batch], sides=None) -> Scores: ...
