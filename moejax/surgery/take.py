"""Takes some experts of every routed layer, in an order: what cutting and relabelling have in common.

No router is known by name. A parameter has a place per expert where its declared shape grows with the number
of experts.
"""

import dataclasses

import jax
import numpy as np

from moejax import specs as sp
from moejax.config import require
from moejax.model import forward, shared
from moejax.quantised import is_quantised

NO_AXIS = -1


def routed(block) -> bool:
    """Whether a block has experts that tokens are routed to."""
    return {"num_experts", "selector"} <= {field.name for field in dataclasses.fields(block.ffn)}


def per_block(m, rows):
    """Rows of the routed layers, lowest first, as an array [repeat, ...] per group and block, or None."""
    rows = iter(rows)

    def one(group):
        own = [[next(rows) if routed(block) else None for block in group.blocks] for _ in range(group.repeat)]
        return tuple(None if visits[0] is None else np.stack(visits) for visits in zip(*own, strict=True))

    return tuple(map(one, m.groups))


def per_layer(blocks) -> np.ndarray:
    """The rows of `per_block` again, [L, ...]."""
    lists = ([block for block in group if block is not None] for group in blocks)
    return np.stack([row for own in lists for visit in zip(*own, strict=True) for row in visit])


def take_experts(params, m, index):
    """(params, m) with the experts of `index` alone, in that order, and what routers know of them.

    Args:
      params: as `m` declares; the leaves come back as they were, numpy or placed on a mesh. The gather itself
        runs on the host.
      index: per group, per block: i32 [repeat, M], different experts of every layer; None keeps all.

    Raises:
      UsageError: there are no such experts, or the router cannot work on them.
    """
    check_index(m, index)
    axes = sp.tree_map(
        _expert_axis,
        forward.specs(m),
        forward.specs(_resized(m, index, lambda num_experts, _: 2 * num_experts)),
    )
    cut = _resized(m, index, lambda _, index_LM: index_LM.shape[1])
    new = dict(params)
    for name, b, index_LM in _blocks(index):
        block = f"block{b}"
        new[name] = new[name] | {block: _take_tree(params[name][block], axes[name][block], index_LM)}
    if "shared" in params:
        new["shared"] = _take_shared(params["shared"], axes["shared"], index)
    _check_carry(m, index)
    return new, cut


def take_sides(sides, m, index):
    """What a controller adds to the routing, for the experts of `index` alone; None stays None."""
    if sides is None:
        return None
    check_index(m, index)

    def one(side, block, index_LM):
        if index_LM is None:
            return side
        per_expert = lambda x: x.shape[-1] == block.ffn.num_experts
        return jax.tree.map(lambda x: _take(x, 2, index_LM) if per_expert(x) else x, side)

    return tuple(
        tuple(map(one, own, group.blocks, rows))
        for own, group, rows in zip(sides, m.groups, index, strict=True)
    )


def check_index(m, index) -> None:
    """Raise UsageError unless `index` names different experts of layers of `m` that can do alone."""
    require(
        [len(rows) for rows in index] == [len(group.blocks) for group in m.groups],
        f"experts are given for groups of {[len(rows) for rows in index]} blocks, the model has groups of "
        f"{[len(group.blocks) for group in m.groups]}; give one entry per block, None to keep all",
    )
    for group, rows in zip(m.groups, index, strict=True):
        for block, index_LM in zip(group.blocks, rows, strict=True):
            if index_LM is not None:
                _check_block(block, group.repeat, index_LM)


def _check_block(block, repeat: int, index_LM) -> None:
    name = type(block.ffn).__name__
    require(routed(block), f"ffn={name} routes no tokens to experts; give None in its place")
    E, K = block.ffn.num_experts, block.ffn.selector.num_slots
    whole = index_LM.ndim == 2 and len(index_LM) == repeat and np.issubdtype(index_LM.dtype, np.integer)
    require(
        whole,
        f"experts are given as {index_LM.dtype} {index_LM.shape}; they must be whole numbers of shape "
        f"({repeat}, M), a row per layer",
    )
    order_LM = np.sort(index_LM, axis=1)
    good = order_LM.size and order_LM.min() >= 0 and order_LM.max() < E and (np.diff(order_LM) > 0).all()
    require(good, f"a row must hold different experts of 0 to {E - 1}; there is {index_LM.tolist()}")
    M = index_LM.shape[1]
    require(
        K <= M,
        f"{M} experts are left of {E}, but ffn.selector.k={K} of them are chosen for a token; "
        f"keep at least {K}, or lower k",
    )
    block.ffn.selector.check_taken(E, index_LM)


def _check_carry(m, index) -> None:
    """Tokens may carry something per expert from layer to layer; then expert e must be the same in all."""
    wide = _resized(m, index, lambda num_experts, _: 2 * num_experts)
    if shared.carry_specs(m) != shared.carry_specs(wide):
        _common(index, "carries numbers per expert from layer to layer")


def _take_shared(params, axes, index):
    if all(axis == NO_AXIS for axis in jax.tree.leaves(axes)):
        return params
    index_M = _common(index, "routes all layers at once")
    take = lambda leaf, axis: leaf if axis == NO_AXIS else _take(leaf, axis, index_M)
    return jax.tree.map(take, params, axes, is_leaf=is_quantised)


def _common(index, reason: str):
    """The one row of experts that all layers take."""
    rows = [tuple(row) for _, _, index_LM in _blocks(index) for row in index_LM.tolist()]
    require(
        len(set(rows)) == 1,
        f"the router {reason}, so all of them must keep the same experts in the same order, but there are "
        f"{len(set(rows))} different rows; give every layer the same one",
    )
    return np.array(rows[0])


def _blocks(index):
    """(group's name, number of the block, its experts) where experts are taken."""
    for g, rows in enumerate(index):
        yield from ((f"group{g}", b, index_LM) for b, index_LM in enumerate(rows) if index_LM is not None)


def _resized(m, index, size):
    """The model whose blocks with an index have `size(num_experts, index_LM)` experts."""

    def one(block, index_LM):
        if index_LM is None:
            return block
        num_experts = size(block.ffn.num_experts, index_LM)
        return dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, num_experts=num_experts))

    groups = (
        dataclasses.replace(group, blocks=tuple(map(one, group.blocks, rows)))
        for group, rows in zip(m.groups, index, strict=True)
    )
    return dataclasses.replace(m, groups=tuple(groups))


def _expert_axis(spec, wide) -> int:
    """Which axis grows with the number of experts."""
    grown = [axis for axis, (a, b) in enumerate(zip(spec.shape, wide.shape, strict=True)) if a != b]
    return grown[0] if grown else NO_AXIS


def _take_tree(params, axes, index_LM):
    take = lambda leaf, axis: leaf if axis == NO_AXIS else _take(leaf, axis, index_LM)
    return jax.tree.map(take, params, axes, is_leaf=is_quantised)


def _take(leaf, axis: int, index):
    """Some of a leaf along `axis`: the same for every layer, or with index [repeat, M] its own for each."""
    if is_quantised(leaf):
        return leaf.map_parts(lambda part: _take(part, axis, index))
    host = np.asarray(leaf)
    if index.ndim == 1:
        taken = np.take(host, index, axis)
    else:
        taken = np.stack([np.take(layer, row, axis - 1) for layer, row in zip(host, index, strict=True)])
    return jax.device_put(taken, leaf.sharding) if isinstance(leaf, jax.Array) else taken
