"""All blocks of a model: groups of blocks, each group scanned over its layers."""

import dataclasses

import jax
import jax.numpy as jnp

from moejax import specs as sp
from moejax.config import require
from moejax.model import block as one_block
from moejax.model import shared
from moejax.ops import cache as slots
from moejax.seams import Context, Memory, Side


def specs(m):
    """Parameters of every group, with a leading layer dim, and of the parts that all layers share."""
    groups = {
        f"group{g}": {
            f"block{b}": sp.tree_map(lambda spec, n=group.repeat: spec.stacked(n), one_block.specs(m, block))
            for b, block in enumerate(group.blocks)
        }
        for g, group in enumerate(m.groups)
    }
    return groups | shared.specs(m)


def cache_specs(m, num_slots: int, length: int):
    """What every layer keeps between calls, for `num_slots` sequences of up to `length` positions."""

    def one(block, repeat):
        parts = {
            "attn": block.attn.cache(m, num_slots, length),
            "ffn": block.ffn.cache(m, num_slots, length),
        }
        return sp.tree_map(
            lambda spec: spec.stacked(repeat), {name: tree for name, tree in parts.items() if tree}
        )

    layers = tuple(tuple(one(block, group.repeat) for block in group.blocks) for group in m.groups)
    return {"layers": layers, "shared": shared.cache_specs(m, num_slots, length)}


def page_specs(m, num_pages: int, page_size: int):
    """What every layer keeps between calls, as `num_pages` pages of so many positions: [pages, heads, ...].

    Raises:
      UsageError: a layer remembers more than attention does.
    """
    layers = cache_specs(m, num_pages, page_size)
    flat = [path for path, _ in sp.leaves(layers)]
    strange = [path for path in flat if "/attn/" not in path]
    require(not strange, f"{', '.join(strange)} of the cache has no pages; use moejax.generate")

    def paged(spec):
        lead, positions, *rest = spec.shape[1:]
        heads, width = rest if len(rest) == 2 else (1, *rest)
        dims = ("layer", None, spec.dims[3] if len(rest) == 2 else None, None, None)
        shape = (spec.shape[0], lead, heads, positions, width)
        return dataclasses.replace(spec, shape=shape, dims=dims)

    return sp.tree_map(paged, layers)


def no_side(m):
    """Nothing added to any layer's routing."""
    return tuple(tuple(Side() for _ in group.blocks) for group in m.groups)


def apply(params, m, h_BTD, ctx: Context, sides, cache, probe):
    """(h_BTD, cache, probes): every token through every layer.

    Args:
      sides: per group, per block: Side with leading layer dim.
      cache: as `cache_specs` declares, or None.
      probe: (BlockOut, Batch) -> tree; its results come back stacked over layers, per group and block.
    """
    prepared, shared_cache = shared.prepare(params, m, ctx.batch, None if cache is None else cache["shared"])
    ctx = ctx.replace(shared=prepared, batch=_with_turns(ctx.batch, m, cache))
    state = (h_BTD, shared.carry(m, ctx.batch))
    new_cache, probes = [], []
    first = layer = 0
    for g, group in enumerate(m.groups):
        own_cache = None if cache is None else cache["layers"][g]
        visits = jnp.arange(group.repeat)
        numbers = (visits + first, visits * len(group.blocks) + layer)
        xs = (params[f"group{g}"], sides[g], own_cache, numbers)
        step = _remat(m, lambda state, x, group=group: _layer(state, x, ctx, m, group, probe))
        state, (cache_g, probes_g) = (jax.lax.scan if m.scan else _unrolled)(step, state, xs)
        new_cache.append(cache_g)
        probes.append(probes_g)
        first += group.repeat
        layer += group.repeat * len(group.blocks)
    cache = None if cache is None else {"layers": tuple(new_cache), "shared": shared_cache}
    return state[0], cache, tuple(probes)


def _with_turns(batch, m, cache):
    """The batch with sine and cosine of its positions, as the layers need them.

    Within the scan every layer would compute them again, on CPU even for every head.
    """
    blocks = [block for group in m.groups for block in group.blocks]
    caches = [None] * len(blocks) if cache is None else [kept for group in cache["layers"] for kept in group]
    turns = {}
    for block, kept in zip(blocks, caches, strict=True):
        if (rotation := block.attn.rotation) is not None and repr(rotation) not in turns:
            length = None if kept is None else _length(kept["attn"], batch)
            turns[repr(rotation)] = rotation.sin_cos(batch.pos_BT, length, m.dtype)
    return batch.replace(turns=turns)


def _length(stacked, batch):
    """Positions of a slot in what the layers of one block remember."""
    first = jax.tree.leaves(stacked)[0]
    return slots.length(jax.ShapeDtypeStruct(first.shape[1:], first.dtype), batch)


def _layer(state, x, ctx, m, group, probe):
    h_BTD, carry = state
    p, sides, caches, (visit, layer) = x
    new_cache, probes = [], []
    for b, block in enumerate(group.blocks):
        key = None if ctx.key is None else jax.random.fold_in(jax.random.fold_in(ctx.key, visit), b)
        memory = Memory(carry, cache={} if caches is None else caches[b])
        block_ctx = ctx.replace(side=sides[b], key=key, batch=_passing(ctx, layer + b))
        with jax.named_scope(f"block{b}"):
            new_BTD, memory, out = one_block.apply(p[f"block{b}"], h_BTD, memory, block_ctx, m, block)
        h_BTD = new_BTD if ctx.layers_BT is None else _kept(new_BTD, h_BTD, block_ctx.batch)
        carry = memory.carry
        new_cache.append(memory.cache)
        probes.append(probe(out, ctx.batch))
    return (h_BTD, carry), (None if caches is None else tuple(new_cache), tuple(probes))


def _passing(ctx, layer):
    """The batch as a layer sees it: tokens that do not pass the layer are absent."""
    if ctx.layers_BT is None:
        return ctx.batch
    first_BT, stop_BT = ctx.layers_BT
    valid_BT = ctx.batch.valid_BT & (first_BT <= layer) & (layer < stop_BT)
    return ctx.batch.replace(valid_BT=valid_BT)


def _kept(new_BTD, old_BTD, batch):
    return jnp.where(batch.valid_BT[..., None], new_BTD, old_BTD)


def _remat(m, step):
    if m.remat == "none":
        return step
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if m.remat == "dots" else None
    return jax.checkpoint(step, policy=policy, prevent_cse=not m.scan)


def _unrolled(step, state, xs):
    """`lax.scan` as a Python loop: the same meaning, one copy of the program per layer."""
    ys = []
    for layer in range(len(jax.tree.leaves(xs)[0])):
        state, y = step(state, jax.tree.map(lambda x, layer=layer: x[layer], xs))
        ys.append(y)
    return state, jax.tree.map(lambda *leaf: jnp.stack(leaf), *ys)
