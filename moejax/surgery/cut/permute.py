"""Relabelling: the same model with its experts in another order.

Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference (2024,
arXiv 2401.08383): a placement of experts becomes an order in which device g owns experts
[g E/P, (g+1) E/P), so that the ordinary split of the expert axis realises it and nothing has to be looked up
at run time.

Differs from the paper: nothing.
"""

from moejax.config import require
from moejax.surgery.take import check_index, take_experts


def permute_experts(params, m, order):
    """(params, m): expert e of a layer is now the one that was expert order[e]; outputs are the same.

    Args:
      params: as `m` declares.
      order: per group, per block: i32 [repeat, E], a permutation per layer; None leaves a block as it is.

    Raises:
      UsageError: a row is no permutation, or the router cannot do with that order.
    """
    check_index(m, order)
    for group, rows in zip(m.groups, order, strict=True):
        for block, order_LE in zip(group.blocks, rows, strict=True):
            sizes = None if order_LE is None else (order_LE.shape[1], block.ffn.num_experts)
            require(
                sizes is None or sizes[0] == sizes[1],
                f"an order of {sizes and sizes[0]} experts is given for {sizes and sizes[1]}; name each once",
            )
    return take_experts(params, m, order)
