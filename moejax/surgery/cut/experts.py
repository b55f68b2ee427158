"""Expert pruning: a model with fewer experts, or one that may not choose the others.

PreMoe: Lightening MoEs on Constrained Memory by Expert Pruning and Retrieval (2025, arXiv 2505.17639): keep M
experts of every layer with their columns of the router and their biases; the top-K then runs among them, and
gates are normalised as the model always does it. Shared experts and everything else stay.

Differs from the paper: a router that chooses among groups of experts is refused unless every group keeps
equally many (the paper turns the groups off). A capacity factor needs no change: the room of an expert
follows from the number of experts that are there.
"""

import numpy as np

from moejax.config import require
from moejax.model.stack import no_side
from moejax.surgery.take import check_index, take_experts


def cut_experts(params, m, keep):
    """(params, m) with the experts of `keep` alone (a Cut).

    Where an expert's gate depends on experts that were not chosen (a softmax that is not renormalised, a norm
    over all scores), or on what other tokens choose, it differs from that of `mask_experts`: it is now a
    share of those that are left.

    Args:
      params: as `m` declares.
      keep: per group, per block: i32 [repeat, M], rising; None keeps all.

    Raises:
      UsageError: fewer are left than a token needs, or the router cannot work on them.
    """
    _require_rising(keep)
    return take_experts(params, m, keep)


def mask_experts(m, keep, sides=None):
    """Sides under which no token is routed to the experts that `keep` leaves out; the model stays whole.

    Args:
      m: ModelConfig.
      keep: as for `cut_experts`.
      sides: what else is added to the routing.
    """
    _require_rising(keep)
    check_index(m, keep)

    def one(side, block, keep_LM):
        if keep_LM is None:
            return side
        expert_11E = np.arange(block.ffn.num_experts)[None, None]
        allow_LBE = (keep_LM[..., None] == expert_11E).any(axis=1)[:, None]
        return side.replace(allow_BE=allow_LBE if side.allow_BE is None else side.allow_BE & allow_LBE)

    return tuple(
        tuple(map(one, own, group.blocks, rows))
        for own, group, rows in zip(no_side(m) if sides is None else sides, m.groups, keep, strict=True)
    )


def _require_rising(keep) -> None:
    for keep_LM in (keep_LM for rows in keep for keep_LM in rows if keep_LM is not None):
        require(
            bool((np.diff(keep_LM, axis=1) > 0).all()),
            f"the experts of a row must rise, so that none changes places; there is {keep_LM.tolist()}. "
            "permute_experts gives them another order",
        )
