"""How much the routing of the same text changes, from one checkpoint to another.

Improving Routing in Sparse Mixture of Experts with Graph of Tokens (2025, arXiv 2505.00792) calls it routing
fluctuation.
"""

import dataclasses

import numpy as np

from moejax.analysis.routing.trace import RoutingTrace
from moejax.config import require


@dataclasses.dataclass(frozen=True)
class Change:
    """Of one layer; 0 = nothing changed."""

    set_change: float  # share of the tokens whose set of experts changed
    top_change: float  # share of the tokens whose first choice changed
    lost_overlap: float  # 1 - mean share of a token's experts that stayed


def change(expert_a_NK, expert_b_NK, num_experts: int) -> Change:
    """Between two routings of the same tokens; expert `num_experts` is an empty slot."""
    a_NK, b_NK = np.asarray(expert_a_NK), np.asarray(expert_b_NK)
    a_NE, b_NE = ((x[..., None] == np.arange(num_experts)).any(axis=1) for x in (a_NK, b_NK))
    most_N = np.maximum(a_NE.sum(axis=1), b_NE.sum(axis=1))
    stayed_N = np.where(most_N > 0, (a_NE & b_NE).sum(axis=1) / np.maximum(most_N, 1), 1.0)
    return Change(
        float((a_NE != b_NE).any(axis=1).mean()),
        float((a_NK[:, 0] != b_NK[:, 0]).mean()),
        float(1 - stayed_N.mean()),
    )


def changes(one: RoutingTrace, other: RoutingTrace) -> list[Change]:
    """Per layer, between two traces of the same text.

    Raises:
      UsageError: they are of other texts, or of models with other routers.
    """
    same = np.array_equal(one.token_N, other.token_N) and np.array_equal(one.text_N, other.text_N)
    require(same, "the traces are of different texts; trace both models on the same one")
    require(
        one.experts_L.tolist() == other.experts_L.tolist() and one.layer_L.tolist() == other.layer_L.tolist(),
        f"the models have {one.experts_L.tolist()} and {other.experts_L.tolist()} experts in their layers; "
        "compare checkpoints of one model",
    )
    pairs = zip(one.layers(), other.layers(), strict=True)
    return [change(a.expert_NK, b.expert_NK, a.num_experts) for a, b in pairs]
