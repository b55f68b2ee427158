"""What reaches over all layers: parts that are stored once, and what a token carries from layer to layer."""

import jax.numpy as jnp

from moejax import sharding
from moejax import specs as sp
from moejax.config import require


def parts(m) -> dict:
    """By name, the ffn that speaks for each part that layers share."""
    found = {}
    for ffn in (ffn for ffn in _ffns(m) if ffn.shared):
        first = found.setdefault(ffn.shared, ffn)
        _require_same(f"share {ffn.shared!r}", first.shared_specs(m), ffn.shared_specs(m))
    return found


def carry_specs(m) -> dict:
    """By name, what one token takes from layer to layer."""
    found = {}
    for name, spec in (entry for ffn in _ffns(m) for entry in ffn.carry_specs(m).items()):
        _require_same(f"carry {name!r}", found.setdefault(name, spec), spec)
    return found


def _ffns(m):
    return (block.ffn for group in m.groups for block in group.blocks)


def _require_same(what, first, other):
    require(
        first == other,
        f"two layers {what} but declare it differently: {first} and {other}; "
        "give their ffns the same settings",
    )


def specs(m):
    """Parameters of all parts, at params["shared"]; nothing at all where no part has any."""
    carry_specs(m)  # layers that disagree are refused before anything is allocated
    tree = {name: ffn.shared_specs(m) for name, ffn in parts(m).items()}
    return {"shared": tree} if tree else {}


def cache_specs(m, num_slots: int, length: int):
    """What decoding keeps for each part."""
    return {name: ffn.shared_cache(m, num_slots, length) for name, ffn in parts(m).items()}


def prepare(params, m, batch, cache):
    """({name: what every layer finds of it}, new cache), once per forward pass."""
    prepared, new_cache = {}, {}
    for name, ffn in parts(m).items():
        own_cache = None if cache is None else cache[name]
        prepared[name], new_cache[name] = ffn.prepare(params["shared"][name], m, batch, own_cache)
    return prepared, None if cache is None else new_cache


def carry(m, batch):
    """What every token carries into the first layer."""

    def start(spec):
        where = sharding.out("BT" + "." * len(spec.shape))
        zero = jnp.zeros((*batch.token_BT.shape, *spec.shape), spec.dtype, out_sharding=where)
        return zero + jnp.asarray(spec.init.value, spec.dtype)

    return sp.tree_map(start, carry_specs(m))
